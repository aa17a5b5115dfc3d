"""Models. In: the folds of a task and the features of an encoder. Out: per arm, a model for every fold and seed."""


rule train_models:
    """Train the models of one arm: all folds and seeds together."""
    input:
        script=scripts("train_models.py"),
        modules=[
            scripts("isoslide/abmil.py"),
            scripts("isoslide/adversary.py"),
            scripts("isoslide/aggregators.py"),
            scripts("isoslide/bags.py"),
            scripts("isoslide/clam.py"),
            scripts("isoslide/combat.py"),
            scripts("isoslide/layers.py"),
            scripts("isoslide/losses.py"),
            scripts("isoslide/metrics.py"),
            scripts("isoslide/models.py"),
            scripts("isoslide/optimising.py"),
            scripts("isoslide/resuming.py"),
            scripts("isoslide/sampling.py"),
            scripts("isoslide/selection.py"),
            scripts("isoslide/steps.py"),
            scripts("isoslide/stored_features.py"),
            scripts("isoslide/task_losses.py"),
            scripts("isoslide/task_metrics.py"),
            scripts("isoslide/tasks.py"),
            scripts("isoslide/training.py"),
            scripts("isoslide/transmil.py"),
        ],
        splits="results/splits/{task}.tsv",
        features=features_of_arm,
    output:
        models="results/models/{task}/{encoder}/{arm}/models.tsv",
        curves="results/models/{task}/{encoder}/{arm}/curves.tsv",
    log:
        "results/logs/train_models/{task}/{encoder}/{arm}.log",
    benchmark:
        "results/benchmarks/train_models/{task}/{encoder}/{arm}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: int(4000 + 1000 * config["memory_gb"]) * attempt,
        runtime=lambda wc, attempt: 240 * attempt,
        gpu=1 if config["training"]["device"] == "cuda" else None,
    params:
        memory_gb=config["memory_gb"],
        device=config["training"]["device"],
        settings=lambda wc: json.dumps(
            {
                "task": config["tasks"][wc.task],
                "arm": config["arms"][wc.arm],
                "training": config["training"],
            }
        ),
    shell:
        """
        python {input.script:q} \
            --splits {input.splits:q} \
            --features {input.features:q} \
            --memory-gb {params.memory_gb} \
            --arm {wildcards.arm:q} \
            --settings {params.settings:q} \
            --device {params.device} \
            --threads {threads} \
            --results results/models/{wildcards.task:q}/{wildcards.encoder:q}/{wildcards.arm:q} \
            --curves {output.curves:q} \
            --output {output.models:q} &>{log:q}
        """
