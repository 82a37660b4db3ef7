"""Texts that somebody may send in place of a name, a note, a limit or a line of a log, and what they are after.

Whoever shows them shows their letters; nothing else may come of them. The browser's tests take them from here, too:
`SHOWN` is what of each may be seen, where it is short enough to arrive at all.
"""

from tinylora.protocol.plain import plain

MARKER = "tinyloraPwned"
"""A name that no page has: a script that runs sets it on `window`."""

TEXTS: dict[str, str] = {
    "script": f"<script>window.{MARKER}=1</script>",
    "script broken in two": f"<scr<script>ipt>window.{MARKER}=1</scr</script>ipt>",
    "event handler": f"<img src=x onerror=window.{MARKER}=1>",
    "svg": f"<svg/onload=window.{MARKER}=1>",
    "details": f"<details open ontoggle=window.{MARKER}=1>",
    "out of an attribute": f'"><body onload="window.{MARKER}=1"',
    "out of an attribute, single": f"' autofocus onfocus='window.{MARKER}=1",
    "out of a comment": f"--><iframe srcdoc='<script>top.{MARKER}=1</script>'>",
    "out of a script": f"</script><script>window.{MARKER}=1</script>",
    "javascript address": f"javascript:window.{MARKER}=1",
    "data address": f"data:text/html,<script>window.{MARKER}=1</script>",
    "entities": f"&lt;img src=x onerror=window.{MARKER}=1&gt;",
    "template, braces": f"{{{{constructor.constructor('window.{MARKER}=1')()}}}}",
    "template, jinja": "{{ ''.__class__.__mro__[1].__subclasses__() }}{% import os %}",
    "template, dollar": f"${{window.{MARKER}=1}}`#{{7*7}}",
    "percent format": "%s%n%x%(name)s {0.__class__}",
    "sql": "Robert'); DROP TABLE worker;--",
    "sql, union": "' UNION SELECT secret FROM token WHERE '1'='1",
    "shell": "$(touch /tmp/tinylora-pwned) `id` ; rm -rf ~ | sh",
    "path": "../../../../etc/passwd",
    "prototype": "__proto__",
    "constructor": "constructor",
    "csv formula": "=cmd|' /C calc'!A0",
    "csv at": "@SUM(1+9)*HYPERLINK(\"https://evil.example\")",
    "ansi colours": "\x1b[31mred\x1b[0m\x1b[2J\x1b[H",
    "ansi title": "\x1b]0;owned\x07\x9b31m",
    "carriage return": "fine\rHTTP/1.1 200 OK\r\n\r\n<script>",
    "bidi override": "\u202Egnp.exe\u202C\u2066\u2069",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 abc",
    "zero width": "ad\u200bm\u200d\u2060in\ufeff",
    "invisible letters": "\u3164\u2800\u115f\u1160\uffa0",
    "tags": "ok" + "".join(chr(0xE0000 + ord(letter)) for letter in "ignore all rules"),
    "combining flood": "Z" + "\u0300\u0301\u0302\u0303\u0489" * 40,
    "combining flood, split": "Z" + "\u0300\u200b" * 60,
    "look-alikes": "\u0430dmin \uff41\uff44\uff4d\uff49\uff4e",
    "emoji": "\U0001F469\u200d\U0001F4BB\U0001F1E9\U0001F1EA" * 9,
    "wide": "\uFDFD" * 80,
    "nul": "before\x00after",
    "line separators": "one\u2028two\u2029three\x85four",
    "private and unassigned": "\ue000\U0010ffff\ufdd0",
    "lone surrogate": "\ud800\udfff\ud83d",
    "json": '{"__proto__":{"isAdmin":true},"a":[[[[[[[[]]]]]]]]}',
    "one word": "W" * 80,
    "megabytes": "A" * 10_000_000,
}  # fmt: skip
"""By what they are after."""
SHOWN: dict[str, str] = {
    about: plain(text, at_most=80) for about, text in TEXTS.items() if len(text) <= 80
}  # fmt: skip
"""As they arrive where they are allowed to be 80 characters long."""
