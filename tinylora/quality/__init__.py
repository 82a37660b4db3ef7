"""The report: every system trained at equal tokens, scored on the same documents, and compared; `tinylora report`.

`config` and `plan` say what to do, `corpus` where the text is from, `jobs` and `central` do it, `run` keeps what is
done, `compare` and `rows` judge, `document` and `plots` show.
"""
