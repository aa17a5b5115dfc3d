"""Tiles. In: tissue and registrations of a batch. Out: per scan the places of its tiles, one grid per specimen."""


rule tile_scans:
    """Lay the grid of each specimen of a batch and carry it to all its scans."""
    input:
        script=scripts("tile_scans.py"),
        modules=[
            scripts("isoslide/grid.py"),
            scripts("isoslide/geojson.py"),
            scripts("isoslide/registration_warp.py"),
            scripts("isoslide/tile_filters.py"),
            scripts("isoslide/tiling.py"),
            scripts("isoslide/tissue.py"),
            scripts("isoslide/quality.py"),
        ],
        checks="results/status/checks/{batch}.tsv",
        tissue="results/status/tissue/{batch}.tsv",
        registrations="results/status/registrations/{batch}.tsv",
    output:
        "results/status/tiles/{tile}/{batch}.tsv",
    log:
        "results/logs/tile_scans/{tile}/{batch}.log",
    benchmark:
        "results/benchmarks/tile_scans/{tile}/{batch}.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 2000 * attempt,
        runtime=lambda wc, attempt: 60 * attempt,
    params:
        view=view_of_tile,
        settings=json.dumps(config["tiles"]),
    shell:
        """
        python {input.script:q} \
            --checks {input.checks:q} \
            --tissue {input.tissue:q} \
            --registrations {input.registrations:q} \
            --view {params.view:q} \
            --settings {params.settings:q} \
            --results results/tiles/{wildcards.tile:q} \
            --output {output:q} &>{log:q}
        """
