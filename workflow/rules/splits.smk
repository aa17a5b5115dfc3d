"""Splits. In: the sheet's labels. Out: per task, the role of every scan in every fold; patients never cross."""


rule make_splits:
    """Draw the folds of a task."""
    input:
        script=scripts("make_splits.py"),
        modules=[
            scripts("isoslide/outcomes.py"),
            scripts("isoslide/split_files.py"),
            scripts("isoslide/splits.py"),
        ],
        sheet=ancient(config["sheet"]),
        file=config["splits"].get("file", []),
    output:
        splits="results/splits/{task}.tsv",
        proof=report(
            "results/splits/proof/{task}.tsv",
            caption="../report/proof.rst",
            category="Tables",
            labels={"task": "{task}", "encoder": "none", "table": "folds"},
        ),
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
        file="--file" if "file" in config["splits"] else "",
    shell:
        """
        python {input.script:q} \
            --sheet {input.sheet:q} \
            --task {wildcards.task:q} \
            --settings {params.settings:q} \
            {params.file} {input.file:q} \
            --output {output.splits:q} \
            --proof {output.proof:q} &>{log:q}
        """
