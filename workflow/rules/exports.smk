"""Exports. In: the models of an arm and what is known of them. Out: a folder that scores new slides elsewhere."""


rule summarise_features:
    """Write mean and variance of the features of every scan, once for all arms and tasks."""
    input:
        script=scripts("summarise_features.py"),
        modules=[scripts("isoslide/summaries.py")],
        features="results/status/features/{encoder}.tsv",
    output:
        "results/exports/summaries/{encoder}.safetensors",
    log:
        "results/logs/summarise_features/{encoder}.log",
    benchmark:
        "results/benchmarks/summarise_features/{encoder}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=lambda wc, attempt: 240 * attempt,
    shell:
        """
        python {input.script:q} --features {input.features:q} --output {output:q} &>{log:q}
        """


rule export_models:
    """Put the models of an arm into a folder with their card, training range and ONNX graph."""
    input:
        script=scripts("export_models.py"),
        modules=[
            scripts("isoslide/abmil.py"),
            scripts("isoslide/exporting.py"),
            scripts("isoslide/model_folder.py"),
            scripts("isoslide/onnx_models.py"),
            scripts("isoslide/ranges.py"),
            scripts("isoslide/scoring.py"),
            scripts("isoslide/tasks.py"),
        ],
        models="results/models/{task}/{encoder}/{arm}/models.tsv",
        splits="results/splits/{task}.tsv",
        summaries=summaries_of_arm,
        slides=slides_of_encoder,
        metrics="results/evaluations/{task}/{encoder}/metrics.tsv",
        thresholds="results/evaluations/{task}/{encoder}/thresholds.tsv",
    output:
        "results/exports/{task}/{encoder}/{arm}/card.json",
    log:
        "results/logs/export_models/{task}/{encoder}/{arm}.log",
    benchmark:
        "results/benchmarks/export_models/{task}/{encoder}/{arm}.tsv"
    conda:
        "../../envs/torch.yaml"
    threads: 1
    resources:
        mem_mb=lambda wc, attempt: 4000 * attempt,
        runtime=60,
    params:
        encoder=facts_of_encoder,
        settings=json.dumps(
            {name: config[name] for name in ("reading", "tissue", "tiles")}
        ),
    shell:
        """
        python {input.script:q} \
            --task {wildcards.task:q} \
            --arm {wildcards.arm:q} \
            --encoder {params.encoder:q} \
            --models {input.models:q} \
            --splits {input.splits:q} \
            --summaries {input.summaries:q} \
            --slides {input.slides:q} \
            --metrics {input.metrics:q} \
            --thresholds {input.thresholds:q} \
            --settings {params.settings:q} \
            --output {output:q} &>{log:q}
        """
