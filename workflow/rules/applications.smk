"""Applications. In: features of scans, and model folders that the config names. Out: per folder, a score of every scan."""


rule apply_models:
    """Score every scan with the models of a folder, and say which lie outside their training range."""
    input:
        script=scripts("apply_models.py"),
        modules=[
            scripts("isoslide/abmil.py"),
            scripts("isoslide/aggregators.py"),
            scripts("isoslide/applying.py"),
            scripts("isoslide/bags.py"),
            scripts("isoslide/clam.py"),
            scripts("isoslide/combat.py"),
            scripts("isoslide/layers.py"),
            scripts("isoslide/losses.py"),
            scripts("isoslide/model_folder.py"),
            scripts("isoslide/models.py"),
            scripts("isoslide/outcomes.py"),
            scripts("isoslide/ranges.py"),
            scripts("isoslide/sampling.py"),
            scripts("isoslide/scoring.py"),
            scripts("isoslide/stored_features.py"),
            scripts("isoslide/summaries.py"),
            scripts("isoslide/task_losses.py"),
            scripts("isoslide/tasks.py"),
            scripts("isoslide/transmil.py"),
        ],
        card=lambda wc: os.path.join(config["apply"][wc.application], model_folder.CARD),
        features=features_of_application,
        slides=slides_of_application,
    output:
        "results/applied/{application}.tsv",
    log:
        "results/logs/apply_models/{application}.log",
    benchmark:
        "results/benchmarks/apply_models/{application}.tsv"
    wildcard_constraints:
        application=one_of(CARDS),
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: int(4000 + 1000 * config["memory_gb"]) * attempt,
        runtime=lambda wc, attempt: 60 * attempt,
    params:
        folder=lambda wc: config["apply"][wc.application],
        memory_gb=config["memory_gb"],
    shell:
        """
        python {input.script:q} \
            --folder {params.folder:q} \
            --features {input.features:q} \
            --slides {input.slides:q} \
            --memory-gb {params.memory_gb} \
            --threads {threads} \
            --output {output:q} &>{log:q}
        """
