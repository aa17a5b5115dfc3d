import importlib.util

from isoslide import keys


def module(tmp_path, text):
    path = tmp_path / f"m{len(list(tmp_path.iterdir()))}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def test_content_key_depends_on_values_not_on_order():
    assert keys.content_key(a=1, b=[2]) == keys.content_key(b=[2], a=1)
    assert keys.content_key(a=1) != keys.content_key(a=2)


def test_code_hash_ignores_comments_docstrings_and_layout(tmp_path):
    one = module(tmp_path, '"""Doc."""\ndef f(x):\n    """Say."""\n    return x + 1\n')
    same = module(tmp_path, "# other\ndef f( x ):\n\n    return (x + 1)  # why\n")
    other = module(tmp_path, "def f(x):\n    return x + 2\n")
    assert keys.code_hash(one) == keys.code_hash(same) != keys.code_hash(other)
