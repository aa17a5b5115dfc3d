"""Tissue. In: the checked scans of a batch. Out: outline (GeoJSON) and overlay per scan, status per batch."""


rule segment_tissue:
    """Outline the tissue of a batch of scans at low resolution."""
    input:
        script=scripts("segment_tissue.py"),
        modules=[
            scripts("isoslide/tissue.py"),
            scripts("isoslide/geojson.py"),
            scripts("isoslide/slide.py"),
        ],
        checks="results/status/checks/{batch}.tsv",
        gate=ancient("results/status/checks.tsv"),
    output:
        "results/status/tissue/{batch}.tsv",
    log:
        "results/logs/segment_tissue/{batch}.log",
    benchmark:
        "results/benchmarks/segment_tissue/{batch}.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=lambda wc, attempt: 120 * attempt,
    params:
        settings=json.dumps(config["tissue"]),
    shell:
        """
        python {input.script:q} \
            --checks {input.checks:q} \
            --settings {params.settings:q} \
            --results results/tissue \
            --threads {threads} \
            --output {output:q} &>{log:q}
        """
