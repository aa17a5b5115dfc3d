"""Checks. In: the sheet and its slides. Out: per batch, what each scan is and whether it can be used; µm/px as a picture."""


rule check_slides:
    """Open every scan of a batch: µm/px, size, levels, fingerprint."""
    input:
        script=scripts("check_slides.py"),
        modules=[
            scripts("isoslide/checks.py"),
            scripts("isoslide/slide.py"),
            scripts("isoslide/slide_files.py"),
            scripts("isoslide/stored_tiles.py"),
            scripts("isoslide/jpeg_tiles.py"),
            scripts("isoslide/tiff_levels.py"),
            scripts("isoslide/dicom_levels.py"),
            scripts("isoslide/openslide_fast.py"),
        ],
        sheet=ancient(config["sheet"]),
        known=ancient(at_base("resources/CMU-1-Small-Region.svs")),
        demo=demo_of_batch,
    output:
        "results/status/checks/{batch}.tsv",
    log:
        "results/logs/check_slides/{batch}.log",
    benchmark:
        "results/benchmarks/check_slides/{batch}.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 2
    resources:
        mem_mb=lambda wc, attempt: 2000 * attempt,
        runtime=lambda wc, attempt: 60 * attempt,
    params:
        scans=scans_of_batch,
        rows=rows_of_batch,
        settings=json.dumps(config["checks"]),
    shell:
        """
        python {input.script:q} \
            --sheet {input.sheet:q} \
            --scans {params.scans:q} \
            --settings {params.settings:q} \
            --known-slide {input.known:q} \
            --threads {threads} \
            --output {output:q} &>{log:q}
        """


rule draw_mpp:
    """Draw the µm/px of all scans by scanner."""
    input:
        script=scripts("draw_mpp.py"),
        modules=[scripts("isoslide/pictures.py"), scripts("isoslide/figures.py")],
        checks="results/status/checks.tsv",
    output:
        "results/checks/mpp.svg",
    log:
        "results/logs/draw_mpp.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    shell:
        """
        python {input.script:q} --checks {input.checks:q} --output {output:q} &>{log:q}
        """
