"""Other formats, in and out: OpenAI's, Long-CLIP's, open_clip's, transformers' and diffusers'.

`longclip_lab.models.load` and `load_text_tower` take them in, `export` gives them out, `parity`
compares what was written, read back by its own library, with what it was written from.
"""
