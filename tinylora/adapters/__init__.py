"""What a node of the tree carries.

`spec` (kinds and ranks) and `shapes` (names and shapes) know no torch; `lora` has tensors and modules.
"""
