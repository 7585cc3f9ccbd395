"""Serve sentiment@champion and follow it: another champion is loaded beside the old one and takes over between two requests.

    MLFLOW_TRACKING_URI=http://registry:5000 uvicorn --app-dir examples serve:app

Needs fastapi, uvicorn, transformers, torch, and gptline on the PATH (or its command line in $GPTLINE). While the registry
is away it serves what it has, also after a restart: from the cache.
"""

import contextlib
import json
import logging
import os
import shlex
import subprocess
import threading

from fastapi import FastAPI
from transformers import pipeline

PULL = [*shlex.split(os.environ.get("GPTLINE", "gptline")), "pull", os.environ.get("MODEL", "sentiment@champion")]
PULL += [os.environ.get("FOLDER", "models/sentiment"), "--json"]
EVERY = os.environ.get("EVERY", "30")  # seconds between two looks at the alias
one_at_a_time = threading.Lock()  # a tokenizer is not made for several threads
serving, following = None, None  # (version, classifier): replaced as one; the waiting `gptline pull`


def load(*options):
    global serving, following
    following = subprocess.Popen([*PULL, *options], stdout=subprocess.PIPE)
    pulled = json.loads(following.communicate()[0])  # nothing was printed if it failed: ValueError
    serving = pulled["version"], pipeline("text-classification", pulled["dest"], truncation=True)


def follow(ending):
    while not ending.is_set():
        try:
            load("--wait-other-than", str(serving[0]), "--every", EVERY)
        except Exception:  # of the pull, which has said why, or of loading: what is served stays
            if not ending.is_set():
                logging.exception("still serving version %s", serving[0])
            ending.wait(float(EVERY))


@contextlib.asynccontextmanager
async def lifespan(app):
    try:
        load()
    except ValueError:
        load("--offline")
    ending = threading.Event()
    threading.Thread(target=follow, args=[ending], daemon=True).start()
    yield
    ending.set()
    following.terminate()


app = FastAPI(lifespan=lifespan)


@app.post("/classify")
def classify(texts: list[str]):
    version, classifier = serving
    with one_at_a_time:
        return {"version": version, "answers": classifier(texts)}
