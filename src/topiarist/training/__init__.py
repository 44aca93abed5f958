"""The parts of training: recipes, the hooks that attach a method to any loop, fresh weights, checkpoints.

`topiarist.train` is the door to all of them.
"""
