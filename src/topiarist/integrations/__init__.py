"""Other people's libraries, one file or folder each; none of them is imported until its own is.

`huggingface` saves and loads models, `huggingface_trainer` and `lightning` prune within those trainers.
"""
