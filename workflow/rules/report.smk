"""Report. In: every table made so far. Out: one self-contained page, and its figures one by one."""

STAGES = {
    "checks": with_slides("results/status/checks.tsv"),
    "tissue": with_slides("results/status/tissue.tsv"),
    "registrations": with_slides("results/status/registrations.tsv"),
    "tiles": expand("results/status/tiles/{tile}.tsv", tile=TILES),
    "features": expand("results/status/features/{encoder}.tsv", encoder=ENCODERS),
}


rule write_report:
    """Write the page that people read."""
    input:
        script=scripts("write_report.py"),
        modules=[
            scripts("isoslide/cohort.py"),
            scripts("isoslide/comparing.py"),
            scripts("isoslide/feature_sections.py"),
            scripts("isoslide/figures.py"),
            scripts("isoslide/measures.py"),
            scripts("isoslide/outcomes.py"),
            scripts("isoslide/presets.py"),
            scripts("isoslide/report.py"),
            scripts("isoslide/run.py"),
            scripts("isoslide/score_figures.py"),
            scripts("isoslide/score_sections.py"),
            scripts("isoslide/scores.py"),
            scripts("isoslide/sections.py"),
            scripts("isoslide/survival.py"),
            scripts("isoslide/thresholds.py"),
            scripts("isoslide/wording.py"),
        ],
        page=[
            scripts("isoslide/page/page.html.j2"),
            scripts("isoslide/page/macros.html.j2"),
            scripts("isoslide/page/page.css"),
            scripts("isoslide/page/page.js"),
        ],
        sheet=config["sheet"],
        status=[table for tables in STAGES.values() for table in tables],
        splits=expand("results/splits/{task}.tsv", task=TASKS),
        metrics=expand(
            "results/evaluations/{task}/{encoder}/metrics.tsv",
            task=TASKS,
            encoder=ENCODERS,
        ),
        comparisons=expand(
            "results/evaluations/{task}/{encoder}/comparisons.tsv",
            task=TASKS,
            encoder=ENCODERS,
        ),
        predictions=expand(
            "results/predictions/{task}/{encoder}/{arm}.tsv",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),
        models=expand(
            "results/models/{task}/{encoder}/{arm}/models.tsv",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),
        curves=expand(
            "results/models/{task}/{encoder}/{arm}/curves.tsv",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),
        thresholds=expand(
            "results/evaluations/{task}/{encoder}/thresholds.tsv",
            task=TASKS,
            encoder=ENCODERS,
        ),
        embeddings=expand(
            "results/evaluations/embeddings/{task}/{encoder}/{arm}.tsv",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),
        embedding_maps=expand(
            "results/evaluations/embeddings/maps/{task}/{encoder}/{arm}.tsv",
            task=TASKS,
            encoder=ENCODERS,
            arm=ARMS,
        ),
        features=expand("results/evaluations/features/{encoder}.tsv", encoder=ENCODERS),
        maps=expand("results/evaluations/features/maps/{encoder}.tsv", encoder=ENCODERS),
        facts=expand(
            "results/evaluations/features/facts/{encoder}.json", encoder=ENCODERS
        ),
        metadata=expand("results/evaluations/metadata/{task}.tsv", task=TASKS),
    output:
        page=report(
            "results/report/index.html",
            caption="../report/page.rst",
            category="Report",
        ),
        figures=report(
            directory("results/report/figures"),
            patterns=["{figure}.svg"],
            caption="../report/figures.rst",
            category="Figures",
            labels={"figure": "{figure}"},
        ),
    log:
        "results/logs/write_report.log",
    benchmark:
        "results/benchmarks/write_report.tsv"
    localrule: True
    conda:
        "../../envs/base.yaml"
    params:
        config=lambda wc: json.dumps(config),
        stages=[
            f"{stage}={table}" for stage, tables in STAGES.items() for table in tables
        ],
        notes=report_notes(),
    shell:
        """
        python {input.script:q} \
            --config {params.config:q} \
            --sheet {input.sheet:q} \
            --status {params.stages:q} \
            --splits {input.splits:q} \
            --metrics {input.metrics:q} \
            --comparisons {input.comparisons:q} \
            --predictions {input.predictions:q} \
            --models {input.models:q} \
            --curves {input.curves:q} \
            --thresholds {input.thresholds:q} \
            --embeddings {input.embeddings:q} \
            --embedding-maps {input.embedding_maps:q} \
            --features {input.features:q} \
            --maps {input.maps:q} \
            --facts {input.facts:q} \
            --metadata {input.metadata:q} \
            --tissue results/tissue \
            --registrations results/registrations \
            --notes {params.notes:q} \
            --figures {output.figures:q} \
            --output {output.page:q} &>{log:q}
        """
