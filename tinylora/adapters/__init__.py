"""What a node of the tree carries.

* `spec`, `prefixes`, `shapes`, `rank_plan`: kinds, ranks, names and shapes, ranks by layer and their search. No torch,
  but for states that a plan is applied to;
* `lora`: tensors that a node begins with, and the module that adds the adapters of many nodes to one linear;
* `nested`: every prefix of the rank is an adapter (DyLoRA); `tied`: A and B shared by all layers (Tied-LoRA);
* `mixing`: many adapters become one, exactly or at a lower rank;
* `drawing`: random numbers, alike on every machine.
"""
