"""Which leaf a token belongs to, known before the base's first layer.

* `features`: running mean of input embeddings, causal (torch);
* `statistics`: sums over one worker's text that add up to those of all (numpy);
* `sketch`: documents to statistics (torch);
* `gates`: sums to sigmoid gates, their temperatures, their average (numpy);
* `ways`: the way of one text through the gates (numpy);
* `halves`: documents of one shard in two like halves (numpy);
* `decision`: names of policies, `policy`: gates and a policy to weights of nodes (torch).

Nothing is imported here: the coordinator reads `statistics` and `gates` and must not load torch for it.
"""
