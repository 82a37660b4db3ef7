"""Write the pages anew, and say which of them changed."""

from tests.docs.reference.pages import FOLDER, PAGES

FOLDER.mkdir(parents=True, exist_ok=True)
for name, make in PAGES.items():
    file, text = FOLDER / name, make()
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        file.write_text(text, encoding="utf-8")
        print(f"docs/reference/{name}: made anew")
