"""Which addresses and images may be used: robots.txt, restricted domains, opt-outs, what was taken down.

Every guest of ``web`` may come in. It promises the same judgement of an address in every stage.
"""
