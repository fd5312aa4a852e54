"""The engine that a server runs: how much of it fits into the machine's memory."""

from functools import partial

import psutil

from fathom.infer.engine import Engine
from fathom.infer.speculation import most_drafts
from fathom.infer.tables import pages_that_fit
from fathom.model import Transformer
from fathom.serve.options import ServeOptions

CPU_PAGE = 16  # tokens: dialogues of small models are short, and only full pages are found again
CPU_SHARE = 4  # of the memory that is free, one part in so many may be taken by pages


def open_engine(model: Transformer, options: ServeOptions) -> Engine:
    """An engine whose rows share a pool of pages, so that what a prompt has in common with earlier ones is not read
    again; on a GPU as many pages as fit."""
    build = partial(Engine, model, options.rows, options.context, options.drafts, stream_s=0.5 / options.events_per_s)
    if model.embedding.weight.is_cuda:
        return build(pages=options.pages)
    return build(pages=options.pages or _pages(model, options), page_size=CPU_PAGE)


def _pages(model: Transformer, options: ServeOptions) -> int:
    capacity = (options.context or model.config.max_position_embeddings) + most_drafts(options.drafts)
    free = psutil.virtual_memory().available // CPU_SHARE
    return pages_that_fit(model.config, options.rows, capacity, CPU_PAGE, model.embedding.weight.dtype, free)
