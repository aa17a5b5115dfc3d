"""Tissue. In: the checked scans of a batch. Out: outline (GeoJSON) and overlay per scan, status per batch;
one page with all overlays."""


rule segment_tissue:
    """Outline the tissue of a batch of scans at low resolution."""
    input:
        script=scripts("segment_tissue.py"),
        modules=[
            scripts("isoslide/tissue.py"),
            scripts("isoslide/segmenters.py"),
            scripts("isoslide/quality.py"),
            scripts("isoslide/geojson.py"),
            scripts("isoslide/slide.py"),
            scripts("isoslide/stored_tiles.py"),
            scripts("isoslide/jpeg_tiles.py"),
            scripts("isoslide/tiff_levels.py"),
            scripts("isoslide/openslide_fast.py"),
        ],
        checks="results/status/checks/{batch}.tsv",
        gate=ancient("results/status/checks.tsv"),
        segmenter=segmenter_of_batch,
    output:
        "results/status/tissue/{batch}.tsv",
    log:
        "results/logs/segment_tissue/{batch}.log",
    benchmark:
        "results/benchmarks/segment_tissue/{batch}.tsv"
    conda:
        "../../envs/trident.yaml" if SEGMENTER else "../../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: (12000 if SEGMENTER else 4000) * attempt,
        runtime=lambda wc, attempt: (240 if SEGMENTER else 120) * attempt,
        gpu=1 if SEGMENTER and config["device"] == "cuda" else None,
    params:
        settings=json.dumps(config["tissue"]),
        segmenter=options_of_segmenter,
    shell:
        """
        python {input.script:q} \
            --checks {input.checks:q} \
            --settings {params.settings:q} \
            --results results/tissue \
            --threads {threads} \
            {params.segmenter} \
            --output {output:q} &>{log:q}
        """


rule draw_contact_sheet:
    """Put all overlays on one page, those worth a look first."""
    input:
        script=scripts("draw_contact_sheet.py"),
        modules=[scripts("isoslide/pictures.py")],
        tissue="results/status/tissue.tsv",
    output:
        "results/tissue/contact_sheet.html",
    log:
        "results/logs/draw_contact_sheet.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    shell:
        """
        python {input.script:q} \
            --tissue {input.tissue:q} \
            --pictures results/tissue \
            --output {output:q} &>{log:q}
        """
