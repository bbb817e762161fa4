"""Pigeonhole: drop in the export.pkl that fastai wrote, get a small, fast, safe image-classification service.

The map, and the direction of imports (left may import right, never back):

    cli, gunicorn_conf  ->  cluster, planning  ->  server, app.py  ->  web, batch, wiring, measuring  ->
    model, intake, sizing  ->  errors, settings, drafts, machine

    cli             the commands of `python -m pigeonhole`
    gunicorn_conf   how gunicorn runs the service
    cluster         the same on many machines, the only room that imports Ray: replica -> whole, what Ray Serve runs;
                    proxy -> whole, what its proxies do with a request; bulk, whole folders through Ray Data
    server          how requests come in and answers go out, without Flask: worker -> connection -> incoming -> chunks;
                    worker -> lanes, refusals
    app.py          the service on one page
    web             the only rooms that import Flask: access, page, openapi, dialects, open_inference -> api,
                    classifier -> bodies -> picture_request; page -> theme, page_examples, files, keys, replies;
                    access -> page, keys, rates; observe, replies -> metrics -> tracing, log_lines; replies,
                    access -> headers; ready -> classifier; as types: prediction_request, answers, tensors -> schemas
    batch           whole folders through the predictor, without Flask: command -> output, report, answering -> rows,
                    finding, heatmaps, scores, pool, stopping, progress
    planning        with which settings the service fits a box: planning -> measuring, sizing
    measuring       the service, run here for a moment: what it holds and how much it answers
    wiring          from the settings to the model they name
    model           from picture to Prediction; the only rooms where torch, fastai and OpenVINO are imported, and late;
                    what serves: choosing -> loading -> known_answers, explainer -> engine -> card -> recipe;
                    choosing -> torch_network -> tracing, engine, where a GPU computes; what compiles:
                    compiler -> tracing -> pipeline, gradcam; probes -> card, recipe; what both draw: explain
    model/store     where MODEL comes from when it is an address: fetching -> remotes -> troubles, cache -> addresses
    model/export    an export.pkl, opened without running it: learner -> doctor, building; doctor -> container, anatomy;
                    and all of them -> judging -> shapes -> pickles -> names
    intake          getting a picture, from an upload, from text or from the web: hostile bytes in, an upright RGB
                    picture out; sandbox -> cells -> confinement, pictures -> formats, memory, pixels, rationed;
                    uploads, budget, fetch -> addresses
    sizing          how the memory of a box is divided; what `plan` and the running service compute with
    errors          what can go wrong: a status, a stable code, a sentence
    settings        what can be set, from the environment, checked once
    drafts          a file that is there whole or not at all
    machine         the cores and the memory that this process may use
"""

__version__ = "0.1.0"
