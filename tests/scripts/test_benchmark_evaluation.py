import benchmark_evaluation


def test_a_small_benchmark_says_seconds_and_megabytes(tmp_path, capsys):
    flags = {"encoders": 1, "tasks": 1, "arms": 2, "folds": 2, "seeds": 1, "patients": 16, "resamples": 20}
    words = [word for name, number in flags.items() for word in (f"--{name}", str(number))]
    benchmark_evaluation.main(["--folder", str(tmp_path), "--processes", "1", *words])
    assert "4 models in 1 cases: evaluation" in capsys.readouterr().err
    assert (tmp_path / "index.html").stat().st_size > 100_000
