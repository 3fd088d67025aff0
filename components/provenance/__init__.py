"""The story of single images: trace one through all tables, take one down from all of them."""
