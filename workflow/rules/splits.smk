"""Splits. In: the sheet's labels. Out: per task, the role of every scan in every fold; patients never cross."""


rule make_splits:
    """Draw the folds of a task."""
    input:
        script=scripts("make_splits.py"),
        modules=[scripts("isoslide/outcomes.py"), scripts("isoslide/splits.py")],
        sheet=ancient(config["sheet"]),
    output:
        "results/splits/{task}.tsv",
    log:
        "results/logs/make_splits/{task}.log",
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        rows=rows_of_task,
        settings=lambda wc: json.dumps(
            {"task": config["tasks"][wc.task], "splits": config["splits"]}
        ),
    shell:
        """
        python {input.script:q} \
            --sheet {input.sheet:q} \
            --task {wildcards.task:q} \
            --settings {params.settings:q} \
            --output {output:q} &>{log:q}
        """
