"""Predictions. In: the models of an arm. Out: a score for every test and tuning scan from every model."""


rule predict_scans:
    """Score the test and tuning scans of every fold with that fold's models, all tiles."""
    input:
        script=scripts("predict_scans.py"),
        modules=[
            scripts("isoslide/abmil.py"),
            scripts("isoslide/aggregators.py"),
            scripts("isoslide/bags.py"),
            scripts("isoslide/combat.py"),
            scripts("isoslide/layers.py"),
            scripts("isoslide/models.py"),
            scripts("isoslide/scoring.py"),
            scripts("isoslide/task_losses.py"),
            scripts("isoslide/stored_features.py"),
            scripts("isoslide/tasks.py"),
            scripts("isoslide/transmil.py"),
        ],
        models="results/models/{task}/{encoder}/{arm}/models.tsv",
        splits="results/splits/{task}.tsv",
        features=features_of_arm,
    output:
        "results/predictions/{task}/{encoder}/{arm}.tsv",
    log:
        "results/logs/predict_scans/{task}/{encoder}/{arm}.log",
    benchmark:
        "results/benchmarks/predict_scans/{task}/{encoder}/{arm}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: int(4000 + 1000 * config["memory_gb"]) * attempt,
        runtime=60,
    params:
        memory_gb=config["memory_gb"],
    shell:
        """
        python {input.script:q} \
            --models {input.models:q} \
            --splits {input.splits:q} \
            --features {input.features:q} \
            --memory-gb {params.memory_gb} \
            --output {output:q} &>{log:q}
        """
