"""A router in front of an OpenAI-compatible server that has every leaf as a LoRA of its own, such as vLLM.

    client ── model "tree" ──► route-proxy ── model "leaf-01" ──► vLLM
                               │ tokenizer, embeddings, gates
                               └ chooses the leaf by the prompt

* `asking`: a request's body → what is to be routed, or why it cannot be (pure);
* `answering`: answers of several leaves → one; errors and lists in OpenAI's shape (pure);
* `choosing`: a text → its leaf and the name that the server knows it by;
* `upstream`: the connection to the server: which headers pass, its streams, the name of its base;
* `app`: the ASGI application;
* `serving`: the port, signals, the end.

Nothing of a prompt is kept or logged.
"""
