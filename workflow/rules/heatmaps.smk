"""Heatmaps. In: the models of an arm and the scans that the config names. Out: a picture per scan, status per arm."""


rule draw_heatmaps:
    """Draw where the models of an arm look on the scans named in the config, and what each tile adds to the score."""
    input:
        script=scripts("draw_heatmaps.py"),
        modules=[
            scripts("isoslide/abmil.py"),
            scripts("isoslide/aggregators.py"),
            scripts("isoslide/combat.py"),
            scripts("isoslide/gallery.py"),
            scripts("isoslide/heatmaps.py"),
            scripts("isoslide/layers.py"),
            scripts("isoslide/task_losses.py"),
            scripts("isoslide/tasks.py"),
            scripts("isoslide/tile_objects.py"),
            scripts("isoslide/tile_values.py"),
            scripts("isoslide/transmil.py"),
        ],
        checks="results/status/checks.tsv",
        tiles=tiles_of_encoder,
        features=features_of_arm,
        splits="results/splits/{task}.tsv",
        models="results/models/{task}/{encoder}/{arm}/models.tsv",
    output:
        "results/heatmaps/{task}/{encoder}/{arm}/status.tsv",
    log:
        "results/logs/draw_heatmaps/{task}/{encoder}/{arm}.log",
    benchmark:
        "results/benchmarks/draw_heatmaps/{task}/{encoder}/{arm}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=60,
    params:
        scans=config["heatmaps"],
    shell:
        """
        python {input.script:q} \
            --scans {params.scans:q} \
            --checks {input.checks:q} \
            --tiles {input.tiles:q} \
            --features {input.features:q} \
            --splits {input.splits:q} \
            --models {input.models:q} \
            --results results/heatmaps/{wildcards.task:q}/{wildcards.encoder:q}/{wildcards.arm:q} \
            --output {output:q} &>{log:q}
        """
