"""Lookups for the rules: what a job reads, and its parameters, from its wildcards; each named after what it returns."""


def with_slides(*paths):
    """The paths where the configuration works on slides; none where all features are imported."""
    return list(paths) if USES_SLIDES else []


def one_of(names):
    """Regular expression of one of these names; of nothing where there are none."""
    return "|".join(map(re.escape, names)) or "(?!)"


def scans_of_batch(wildcards):
    """Ids of the scans of a batch."""
    return list(BATCHES[wildcards.batch]["scan"])


def rows_of_batch(wildcards):
    """The batch's rows of the sheet as text: a parameter, so that only its own batch runs when a row changes."""
    return BATCHES[wildcards.batch][list(sheet.SLIDE_COLUMNS)].to_csv(index=False)


def rows_of_import(wildcards):
    """The columns of the batch's rows that imported features depend on, as text."""
    used = imports.columns(config["import"][wildcards.encoder])
    return BATCHES[wildcards.batch][used].to_csv(index=False)


def demo_of_batch(wildcards):
    """The demo's manifest if scans of the batch are the demo's, which are made before they are checked."""
    paths = BATCHES[wildcards.batch]["path"]
    return (
        ["results/demo/manifest.tsv"]
        if paths.str.startswith(sheet.DEMO_SLIDES).any()
        else []
    )


def rows_of_task(wildcards):
    """The columns of the sheet that the folds of a task depend on, as text."""
    return sheet.included(SHEET)[
        sheet.split_columns(config["tasks"][wildcards.task])
    ].to_csv(index=False)


def tables_of_stage(wildcards):
    """Status tables of all batches of a stage."""
    stage, _, encoder = wildcards.stage.partition("/")
    shared = [view for view, names in TOGETHER.items() if encoder in names]
    folder = f"features_together/{shared[0]}" if shared else wildcards.stage
    return [f"results/status/{folder}/{batch}.tsv" for batch in BATCHES]


def view_of_tile(wildcards):
    """Side in pixels and µm per pixel of a tile view, as JSON."""
    return next(
        json.dumps({"tile_px": encoder.tile_px, "mpp": encoder.mpp})
        for encoder in REGISTRY.values()
        if encoder.tile == wildcards.tile
    )


def encoders_of_job(wildcards):
    """Ids of the encoders that a job runs: one, or all that want the same tiles."""
    return (
        TOGETHER[wildcards.tile] if "tile" in wildcards.keys() else [wildcards.encoder]
    )


def tiles_of_encoder(wildcards):
    """Status table of the tiles in the view that the encoder wants: of the batch, or of all where there is no batch."""
    view = f"results/status/tiles/{REGISTRY[encoders_of_job(wildcards)[0]].tile}"
    return (
        f"{view}/{wildcards.batch}.tsv"
        if "batch" in wildcards.keys()
        else f"{view}.tsv"
    )


def registrations_of_import(wildcards):
    """Status tables of the batch that imported features are paired by: checks and registrations, or none."""
    stages = ("checks", "registrations") if wildcards.encoder in REGISTERED else ()
    return [f"results/status/{stage}/{wildcards.batch}.tsv" for stage in stages]


def environment_of_encoder(wildcards):
    """Encoders that TRIDENT runs need its own, older versions."""
    if REGISTRY[encoders_of_job(wildcards)[0]].loader == "trident":
        return "../../envs/trident.yaml"
    return "../../envs/torch.yaml"


def segmenter_of_batch(wildcards):
    """Nothing; but where TRIDENT or its weights are missing the run ends here, before its first job."""
    if not os.path.exists(f"results/status/tissue/{wildcards.batch}.tsv"):
        made = "conda" in map(str, workflow.deployment_settings.deployment_method)
        method = config["tissue"]["method"]
        if line := segmenters.missing(method, config["weights"], made):
            cli.fail(line)
    return []


def options_of_segmenter(wildcards):
    """Options of segment_tissue.py for a network of TRIDENT."""
    return segmenters.options(config, BATCHES[wildcards.batch])


def weights_of_encoder(wildcards):
    """Nothing; but where weights are missing the run ends here, before its first job, not after hours of tiles."""
    for encoder in encoders_of_job(wildcards):
        if os.path.exists(f"results/status/features/{encoder}.tsv"):
            continue
        if line := weights.missing(REGISTRY[encoder], config["weights"]):
            cli.fail(line)
    return []


def features_of_arm(wildcards):
    """Status table of the features that the arm is trained on: the encoder's, or those of its normalised tiles."""
    stain = config["arms"][wildcards.arm].get("stain")
    name = f"{wildcards.encoder}+{stain}" if stain else wildcards.encoder
    return f"results/status/features/{name}.tsv"


def summaries_of_arm(wildcards):
    """The features in short that the arm is trained on."""
    name = features_of_arm(wildcards).removeprefix("results/status/features/")
    return f"results/exports/summaries/{name.removesuffix('.tsv')}.safetensors"


def slides_of_encoder(wildcards):
    """Status tables that say what slides look like; none where the features are imported."""
    stages = () if wildcards.encoder in IMPORTED else ("checks", "tissue")
    return [f"results/status/{stage}.tsv" for stage in stages]


def facts_of_encoder(wildcards):
    """What the card of a model folder says of the encoder, as JSON."""
    name = wildcards.encoder
    known = (
        model_folder.imported_facts(name)
        if name in IMPORTED
        else model_folder.entry_facts(REGISTRY[name])
    )
    return json.dumps(known)


def features_of_application(wildcards):
    """Status table of the features that the models of a folder take."""
    name = model_folder.features_name(CARDS[wildcards.application])
    return f"results/status/features/{name}.tsv"


def slides_of_application(wildcards):
    """Status tables that say what the scans look like; none where the features are imported."""
    imported = CARDS[wildcards.application]["encoder"]["imported"]
    stages = () if imported else ("checks", "tissue")
    return [f"results/status/{stage}.tsv" for stage in stages]


def gate_of_encoder(wildcards):
    """The stage's table: no encoder starts before all tiles are known to be good."""
    tile = REGISTRY[encoders_of_job(wildcards)[0]].tile
    return ancient(f"results/status/tiles/{tile}.tsv")


def report_notes():
    """What a reader must know before any number: lines for the banner of the page."""
    lines = []
    if SHEET["path"].str.startswith(sheet.DEMO_SLIDES).any():
        lines.append(
            "The demo cohort is simulated: tissue pieces of one real slide, put together at random, looked at by four "
            "simulated scanners; labels and survival times follow the simulated tissue. It shows that the method runs "
            "and what it changes here. It says nothing about real scanners or patients."
        )
    for encoder in NATIVE:
        if not REGISTRY[encoder].pathology:
            lines.append(f"Encoder {encoder}: {REGISTRY[encoder].name}.")
    for name in IMPORTED:
        lines.append(f"Features {name} were made elsewhere and imported.")
    return lines
