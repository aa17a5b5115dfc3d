"""Evaluations. In: predictions, features, status tables. Out: metrics, arms against the control, and what can be said
before training: how much of the scanner is in the features, and whether facts about the scan tell the label.
"""


rule evaluate_predictions:
    """Compute metrics with patient-bootstrap intervals, and each arm minus the control."""
    input:
        script=scripts("evaluate_predictions.py"),
        modules=[
            scripts("isoslide/comparing.py"),
            scripts("isoslide/estimates.py"),
            scripts("isoslide/evaluation.py"),
            scripts("isoslide/measures.py"),
            scripts("isoslide/metrics.py"),
            scripts("isoslide/scopes.py"),
            scripts("isoslide/survival.py"),
            scripts("isoslide/thresholds.py"),
            scripts("isoslide/task_metrics.py"),
            scripts("isoslide/task_weighted.py"),
            scripts("isoslide/uncertainty.py"),
            scripts("isoslide/weighted.py"),
        ],
        predictions=expand(
            "results/predictions/{{task}}/{{encoder}}/{arm}.tsv", arm=ARMS
        ),
        models=expand("results/models/{{task}}/{{encoder}}/{arm}/models.tsv", arm=ARMS),
        splits="results/splits/{task}.tsv",
    output:
        metrics=report(
            "results/evaluations/{task}/{encoder}/metrics.tsv",
            caption="../report/metrics.rst",
            category="Tables",
            labels={"task": "{task}", "encoder": "{encoder}", "table": "metrics"},
        ),
        comparisons=report(
            "results/evaluations/{task}/{encoder}/comparisons.tsv",
            caption="../report/comparisons.rst",
            category="Tables",
            labels={"task": "{task}", "encoder": "{encoder}", "table": "comparisons"},
        ),
        by_model="results/evaluations/{task}/{encoder}/by_model.tsv",
        thresholds="results/evaluations/{task}/{encoder}/thresholds.tsv",
    log:
        "results/logs/evaluate_predictions/{task}/{encoder}.log",
    benchmark:
        "results/benchmarks/evaluate_predictions/{task}/{encoder}.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=60,
    params:
        control=config["control"],
        settings=lambda wc: json.dumps(
            {"task": config["tasks"][wc.task], "evaluation": config["evaluation"]}
        ),
    shell:
        """
        python {input.script:q} \
            --predictions {input.predictions:q} \
            --models {input.models:q} \
            --splits {input.splits:q} \
            --control {params.control:q} \
            --settings {params.settings:q} \
            --metrics {output.metrics:q} \
            --comparisons {output.comparisons:q} \
            --by-model {output.by_model:q} \
            --thresholds {output.thresholds:q} &>{log:q}
        """


rule evaluate_features:
    """Measure how much of the scanner is in an encoder's features."""
    input:
        script=scripts("evaluate_features.py"),
        modules=[
            scripts("isoslide/embedding.py"),
            scripts("isoslide/neighbours.py"),
            scripts("isoslide/uncertainty.py"),
        ],
        features="results/status/features/{encoder}.tsv",
        sheet=config["sheet"],
        splits=expand("results/splits/{task}.tsv", task=TASKS),
    output:
        metrics=report(
            "results/evaluations/features/{encoder}.tsv",
            caption="../report/features.rst",
            category="Tables",
            labels={
                "task": "before training",
                "encoder": "{encoder}",
                "table": "features",
            },
        ),
        map="results/evaluations/features/maps/{encoder}.tsv",
        facts="results/evaluations/features/facts/{encoder}.json",
    log:
        "results/logs/evaluate_features/{encoder}.log",
    benchmark:
        "results/benchmarks/evaluate_features/{encoder}.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=60,
    params:
        settings=json.dumps(config["evaluation"]),
    shell:
        """
        python {input.script:q} \
            --features {input.features:q} \
            --sheet {input.sheet:q} \
            --splits {input.splits:q} \
            --settings {params.settings:q} \
            --metrics {output.metrics:q} \
            --map {output.map:q} \
            --facts {output.facts:q} &>{log:q}
        """


rule embed_tiles:
    """Measure how much of the scanner is left in the tile embeddings of an arm's models."""
    input:
        script=scripts("embed_tiles.py"),
        modules=[
            scripts("isoslide/abmil.py"),
            scripts("isoslide/aggregators.py"),
            scripts("isoslide/combat.py"),
            scripts("isoslide/embedding.py"),
            scripts("isoslide/layers.py"),
            scripts("isoslide/models.py"),
            scripts("isoslide/neighbours.py"),
            scripts("isoslide/tile_embeddings.py"),
            scripts("isoslide/transmil.py"),
            scripts("isoslide/uncertainty.py"),
        ],
        models="results/models/{task}/{encoder}/{arm}/models.tsv",
        splits="results/splits/{task}.tsv",
        features=features_of_arm,
    output:
        metrics=report(
            "results/evaluations/embeddings/{task}/{encoder}/{arm}.tsv",
            caption="../report/embeddings.rst",
            category="Tables",
            labels={
                "task": "{task}",
                "encoder": "{encoder}",
                "table": "tile embeddings of {arm}",
            },
        ),
        map="results/evaluations/embeddings/maps/{task}/{encoder}/{arm}.tsv",
    log:
        "results/logs/embed_tiles/{task}/{encoder}/{arm}.log",
    benchmark:
        "results/benchmarks/embed_tiles/{task}/{encoder}/{arm}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=60,
    params:
        settings=json.dumps(config["evaluation"]),
    shell:
        """
        python {input.script:q} \
            --models {input.models:q} \
            --splits {input.splits:q} \
            --features {input.features:q} \
            --settings {params.settings:q} \
            --threads {threads} \
            --metrics {output.metrics:q} \
            --map {output.map:q} &>{log:q}
        """


rule evaluate_metadata:
    """Tell the label from facts about the scan alone, if that can be done."""
    input:
        script=scripts("evaluate_metadata.py"),
        modules=[
            scripts("isoslide/metadata.py"),
            scripts("isoslide/metrics.py"),
            scripts("isoslide/survival.py"),
            scripts("isoslide/task_weighted.py"),
            scripts("isoslide/uncertainty.py"),
            scripts("isoslide/weighted.py"),
        ],
        splits="results/splits/{task}.tsv",
        sheet=config["sheet"],
        status=[
            *with_slides("results/status/checks.tsv", "results/status/tissue.tsv"),
            (
                f"results/status/tiles/{REGISTRY[NATIVE[0]].tile}.tsv"
                if NATIVE
                else f"results/status/features/{ENCODERS[0]}.tsv"
            ),
        ],
    output:
        report(
            "results/evaluations/metadata/{task}.tsv",
            caption="../report/metadata.rst",
            category="Tables",
            labels={"task": "{task}", "encoder": "none", "table": "metadata"},
        ),
    log:
        "results/logs/evaluate_metadata/{task}.log",
    benchmark:
        "results/benchmarks/evaluate_metadata/{task}.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 2000 * attempt,
        runtime=30,
    params:
        settings=json.dumps(config["evaluation"]),
    shell:
        """
        python {input.script:q} \
            --splits {input.splits:q} \
            --sheet {input.sheet:q} \
            --status {input.status:q} \
            --settings {params.settings:q} \
            --output {output:q} &>{log:q}
        """
