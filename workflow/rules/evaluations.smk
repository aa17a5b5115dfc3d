"""Evaluations. In: the predictions of all arms of a task and encoder. Out: metrics, and arms against the control."""


rule evaluate_predictions:
    """Compute metrics with patient-bootstrap intervals, and each arm minus the control."""
    input:
        script=scripts("evaluate_predictions.py"),
        modules=[
            scripts("isoslide/comparing.py"),
            scripts("isoslide/estimates.py"),
            scripts("isoslide/evaluation.py"),
            scripts("isoslide/metrics.py"),
            scripts("isoslide/survival.py"),
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
            --comparisons {output.comparisons:q} &>{log:q}
        """
