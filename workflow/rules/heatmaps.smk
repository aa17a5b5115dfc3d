"""Heatmaps. In: the models of an arm and the scans that the config names. Out: pictures and tile values per scan, two scans of a specimen side by side, and a page per scan to look at it."""

SHOWN_ARMS = configuration.before_and_after(config)


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


rule compare_scanners:
    """Draw two scans of a specimen side by side, in the control arm and in the arm with the losses."""
    input:
        script=scripts("compare_scanners.py"),
        modules=[
            scripts("isoslide/heatmaps.py"),
            scripts("isoslide/scanner_pairs.py"),
            scripts("isoslide/tile_objects.py"),
        ],
        checks="results/status/checks.tsv",
        tiles=tiles_of_encoder,
        maps=expand(
            "results/heatmaps/{{task}}/{{encoder}}/{arm}/status.tsv", arm=SHOWN_ARMS
        ),
    output:
        "results/scanner_pairs/{task}/{encoder}/status.tsv",
    log:
        "results/logs/compare_scanners/{task}/{encoder}.log",
    benchmark:
        "results/benchmarks/compare_scanners/{task}/{encoder}.tsv"
    conda:
        "../../envs/base.yaml"
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
            --maps {input.maps:q} \
            --results results/scanner_pairs/{wildcards.task:q}/{wildcards.encoder:q} \
            --output {output:q} &>{log:q}
        """


rule write_viewers:
    """Write a page per scan on which the slide can be looked at, with what the models make of it laid over it."""
    input:
        script=scripts("write_viewers.py"),
        modules=[
            scripts("isoslide/heatmaps.py"),
            scripts("isoslide/pyramid.py"),
            scripts("isoslide/tile_objects.py"),
            scripts("isoslide/viewer.py"),
            scripts("isoslide/page/viewer.html.j2"),
            scripts("isoslide/page/viewer.css"),
            scripts("isoslide/page/viewer.js"),
        ],
        checks="results/status/checks.tsv",
        tiles=expand("results/status/tiles/{tile}.tsv", tile=TILES),
        maps=expand(
            "results/heatmaps/{task}/{encoder}/{arm}/status.tsv",
            task=TASKS,
            encoder=NATIVE,
            arm=ARMS,
        ),
    output:
        "results/viewer/status.tsv",
    log:
        "results/logs/write_viewers.log",
    benchmark:
        "results/benchmarks/write_viewers.tsv"
    conda:
        "../../envs/base.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=240,
    params:
        scans=config["heatmaps"],
        tiles=json.dumps(
            {
                encoder: f"results/status/tiles/{REGISTRY[encoder].tile}.tsv"
                for encoder in NATIVE
            }
        ),
    shell:
        """
        python {input.script:q} \
            --scans {params.scans:q} \
            --checks {input.checks:q} \
            --tiles {params.tiles:q} \
            --maps {input.maps:q} \
            --results results/viewer \
            --output {output:q} &>{log:q}
        """
