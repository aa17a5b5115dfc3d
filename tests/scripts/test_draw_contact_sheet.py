import draw_contact_sheet
from isoslide import status


def test_page_points_to_the_pictures_that_are_there(tmp_path):
    numbers = {"tissue_mm2": 1.5, "sharpness": 1.0, "ink_share": 0.0, "black_share": 0.0}
    row = {"status": "ok", "specimen": "g", "scanner": "A"} | numbers
    lost = status.failed({"scan": "b", "specimen": "g", "scanner": "A"}, "missing", "no file")
    status.write(tmp_path / "tissue.tsv", [row | {"scan": "a 1"}, lost])
    (tmp_path / "tissue").mkdir()
    (tmp_path / "tissue/a 1.jpg").touch()
    output = tmp_path / "tissue/contact_sheet.html"
    arguments = ["--tissue", str(tmp_path / "tissue.tsv"), "--pictures", str(tmp_path / "tissue")]
    draw_contact_sheet.main([*arguments, "--output", str(output)])
    page = output.read_text()
    assert 'src="./a%201.jpg"' in page
    assert "missing: no file" in page
