"""The story of single images: trace one through all tables, take one down from all of them.

Nobody imports this room. It promises to know other rooms' files by ``tables.layout`` alone, and to refuse a folder
with a file that is not declared there.
"""
