import pandas as pd
import pytest

from isoslide import sheet

HEADER = "scan,path,scanner,specimen,patient,split,exclude,label,months,event\n"
TASK = {"response": {"type": "binary", "label": "label", "positive": "yes"}}


def write(folder, rows, header=HEADER):
    path = folder / "slides.csv"
    path.write_text(header + "\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_ids_stay_text_and_defaults_are_filled(tmp_path):
    table = sheet.read(write(tmp_path, ["00123,a b.svs,A,,,,,yes,12,1"]))
    row = table.iloc[0]
    assert (row["scan"], row["specimen"], row["patient"], row["mpp"]) == ("00123", "00123", "00123", "")
    assert table.index[0] == 2  # the line of the file, for messages


def test_reads_tabs_byte_order_mark_windows_line_ends_and_trailing_blanks(tmp_path):
    path = tmp_path / "slides.tsv"
    path.write_bytes("\ufeffscan\tpath\tscanner\r\ns1\t/d/a.svs \tA\r\n\r\n".encode())
    assert sheet.read(path)["path"].tolist() == ["/d/a.svs"]


def test_odd_characters_and_names_of_columns_stay(tmp_path):
    rows = ["s\u20281,a  b.svs,A,x\x0by", 's2,"a, b.svs",A,7']
    table = sheet.read(write(tmp_path, rows, "scan,path,scanner,line\n"))
    assert table["scan"].tolist() == ["s\u20281", "s2"]
    assert table["path"].tolist() == ["a  b.svs", "a, b.svs"]
    assert table["line"].tolist() == ["x\x0by", "7"]
    assert table.index.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["s1,a,A", "s1,b,A"], r"lines 2, 3: scan 's1' stands 2 times"),
        (["s1,a,A", "S1,b,A"], r"lines 2, 3: scan 's1' stands 2 times"),
        (["s1,a,GT450", "s2,b,A", "s3,b,gt450"], r"lines 2, 4: scanner 'GT450' and 'gt450' are spelt nearly alike"),
        (["s1,a,A,G1,P 1", "s2,b,A,G2,p\u00a01"], r"lines 2, 3: patient 'P 1' and 'p.xa01' are spelt nearly alike"),
        (
            ["s1,a,A,Gru\u0308n", "s2,b,A,Gr\u00fcn"],
            r"lines 2, 3: (specimen|patient) 'Gr.*' and 'Gr.*n' are spelt nearly alike",
        ),
        (["../s1,a,A"], r"line 2: scan '../s1': ids become file names"),
        (["a/b,a,A"], r"line 2: scan 'a/b'"),
        ([",a,A"], r"line 2: scan ''"),
        (["x" * 201 + ",a,A"], r"over 200 bytes"),
        (["s1,a,A,G1,P1", "s2,a,B,G1,P2"], r"lines 2, 3: specimen 'G1' is of patients 'P1' and 'P2'"),
        (["a\\b,a,A"], r"line 2: scan 'a"),
        (["..,a,A"], r"line 2: scan '..'"),
        (["s1,a,A,../G"], r"line 2: specimen '../G'"),
        (["s1,a,A,,,training"], r"line 2: split 'training'"),
        (["s1,a,A,,,,,,,,,"], r"line 2: 12 cells but 10 columns"),
        (["s1,a,A", 's2,"a,A', "s3,a,A", "s4,a,A"], r"line 3: unexpected end of data"),  # it would swallow s3 and s4
        (['s1,"a,A', "s2,a,A", 's3,a,"A"'], r"line 2: .*quotation mark"),
        (['s1,"a', 'b",A', "s2,a,A"], r"line 2: a cell goes on in line 3"),
        (["s1,a,A," + "x" * 200_000], r"line 2: field larger than"),
        ([], r"no rows"),
    ],
)
def test_refuses_with_line_value_and_remedy(tmp_path, rows, message):
    with pytest.raises(sheet.SheetError, match=message) as error:
        sheet.read(write(tmp_path, rows))
    assert "\n" not in str(error.value)


def test_refuses_headers_it_cannot_use(tmp_path):
    with pytest.raises(sheet.SheetError, match="column 'scanner' is missing"):
        sheet.read(write(tmp_path, ["s1,a"], "scan,path\n"))
    with pytest.raises(sheet.SheetError, match="neither tabs nor commas"):
        sheet.read(write(tmp_path, ["s1;a;A"], "scan;path;scanner\n"))
    with pytest.raises(sheet.SheetError, match="column 'scan' stands twice"):
        sheet.read(write(tmp_path, ["s1,s1,a,A"], "scan,scan,path,scanner\n"))
    with pytest.raises(sheet.SheetError, match="no sample sheet"):
        sheet.read(tmp_path / "absent.tsv")


def test_sheet_of_a_german_spreadsheet_program_is_refused_with_the_reason(tmp_path):
    """Semicolons; a decimal comma."""
    path = tmp_path / "slides.csv"
    path.write_bytes("\ufeffscan;path;scanner;mpp\r\ns1;a;A;0,25\r\n".encode())
    with pytest.raises(sheet.SheetError, match="neither tabs nor commas: save it as TSV or CSV"):
        sheet.read(path)
    with pytest.raises(sheet.SheetError, match="mpp '0,25': give µm per pixel as a number .* with a point"):
        sheet.read(write(tmp_path, ["s1\ta\tA\t0,25"], "scan\tpath\tscanner\tmpp\n"))


def test_the_sheets_mpp_wins_only_where_it_says_so(tmp_path):
    header = "scan,path,scanner,mpp,mpp_override\n"
    assert sheet.read(write(tmp_path, ["s1,a,A,0.5,yes"], header))["mpp_override"].tolist() == ["yes"]
    for cells in (",yes", "0.5,1"):
        with pytest.raises(sheet.SheetError, match="write yes where the sheet's mpp is to win"):
            sheet.read(write(tmp_path, [f"s1,a,A,{cells}"], header))


@pytest.mark.parametrize("mpp", ["0,25", "40", "0", "fast", "nan"])
def test_refuses_impossible_mpp(tmp_path, mpp):
    path = tmp_path / "slides.tsv"
    path.write_text(f"scan\tpath\tscanner\tmpp\ns1\ta\tA\t{mpp}\n")
    with pytest.raises(sheet.SheetError, match=rf"line 2: mpp '{mpp}'"):
        sheet.read(path)


def test_missing_paths(tmp_path):
    (tmp_path / "a.svs").touch()
    rows = [f"s1,{tmp_path}/a.svs,A", "s2,results/demo/slides/x.tif,A", "s3,gone.svs,A,,,,lost in the post"]
    table = sheet.read(write(tmp_path, rows))
    sheet.check_paths(table, "slides.csv")
    table = sheet.read(write(tmp_path, [*rows, "s4,gone.svs,A"]))
    with pytest.raises(sheet.SheetError, match=r"slides.csv line 5: scan 's4': no file 'gone.svs'"):
        sheet.check_paths(table, "slides.csv")


def test_a_path_that_the_disk_refuses_is_a_missing_file(tmp_path):
    table = sheet.read(write(tmp_path, [f"s1,{tmp_path}/{'x' * 300}.svs,A"]))
    with pytest.raises(sheet.SheetError, match="line 2: scan 's1': no file '/.*x"):
        sheet.check_paths(table, "slides.csv")


def test_batches_keep_specimens_together_and_do_not_depend_on_other_rows(tmp_path):
    rows = [f"s{i},a,A,G{i // 2}" for i in range(100)]
    table = sheet.read(write(tmp_path, [*rows, "x,a,A,G0,,,blurred"]))
    batches = sheet.batches(table, 30)
    assert sum(map(len, batches.values())) == 100
    assert set(batches) == {"b0", "b1", "b2", "b3"}
    owners = [set(batch["specimen"]) for batch in batches.values()]
    assert len(set.union(*owners)) == sum(map(len, owners))
    fewer = sheet.batches(table.iloc[20:], 30)  # 80 scans still make four batches
    for name, batch in fewer.items():
        assert set(batch["scan"]) <= set(batches[name]["scan"])


@pytest.mark.parametrize(("n", "expected"), [(10, 1), (16, 1), (17, 2), (200, 16), (5000, 256), (27_042, 256)])
def test_number_of_batches_where_their_size_is_not_given(n, expected):
    table = pd.DataFrame({"specimen": [str(i) for i in range(n)], "exclude": ""})
    batches = sheet.batches(table)
    assert expected / 2 < len(batches) <= expected
    assert {len(name) for name in batches} == {1 + len(str(expected - 1))}


def test_one_reference_scan_a_specimen(tmp_path):
    header = "scan,path,scanner,specimen,reference,exclude\n"
    good = ["s1,a,A,g,yes,", "s2,b,B,g,,", "s3,c,C,g,yes,blurred"]
    assert sheet.read(write(tmp_path, good, header))["reference"].tolist() == ["yes", "", "yes"]
    for rows, message in ((["s1,a,A,g,1,"], "reference '1'"), ([*good[:1], "s2,b,B,g,yes,"], "2 reference scans")):
        with pytest.raises(sheet.SheetError, match=message):
            sheet.read(write(tmp_path, rows, header))
