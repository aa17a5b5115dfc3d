"""Status of a stage. In: the tables of its batches. Out: one table, one row per scan of the sheet.

Here a run stops, with the list, when scans were lost and the config says `on_bad_slide: fail`.
"""


rule collect_status:
    """Put the batches' status tables together and check that no scan is missing."""
    input:
        script=scripts("collect_status.py"),
        modules=[scripts("isoslide/checks.py"), scripts("isoslide/status.py")],
        tables=tables_of_stage,
    output:
        "results/status/{stage}.tsv",
    log:
        "results/logs/collect_status/{stage}.log",
    wildcard_constraints:
        stage=r"checks|tissue|registrations|(tiles|features)/[^/]+",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        on_bad_slide=config["on_bad_slide"],
        n_scans=sum(len(rows) for rows in BATCHES.values()),
    shell:
        """
        python {input.script:q} \
            --tables {input.tables:q} \
            --stage {wildcards.stage:q} \
            --expect {params.n_scans} \
            --on-bad-slide {params.on_bad_slide} \
            --output {output:q} 2>&1 | tee {log:q}
        """
