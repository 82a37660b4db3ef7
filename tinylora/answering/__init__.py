"""A bundle that answers: a prompt at a time as it is written, files of them in batches, a conversation.

opening.py     bundle and base → a model on a device
questions.py   files → what is asked, each with its place
writing.py     questions → answers in batches; lines of JSON, all of them or none
leaves.py      which leaf answers
conversation.py  turns → tokens that fit in the window
chatting.py    a conversation at a terminal
"""
