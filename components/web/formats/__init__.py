"""The formats of the web: addresses, HTTP answers, pages and their links, opt-outs, WARC and WAT files.

Every guest of ``web`` may come in. It promises to read as browsers read, within limits of bytes and time, and that
damage is counted, never fatal while anything can be read. It judges nothing.
"""
