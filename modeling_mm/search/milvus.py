# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""
Milvus: embedded in this process, in a folder of the index, or a server; the same client speaks to both.

Embedded, only one process can open the index at a time, and `FLAT` is the only type of index: the approximate ones of
milvus-lite lose hits under a filter and after deletes, and `AUTOINDEX` is one of them. milvus-lite takes any name of a
type, and embeddings with NaN; so both are checked before. Metadata are columns and no JSON field, for the same reason.

Shape legend: N rows, P the size of an embedding.
"""

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .columns import FIXED, MAX_TEXT_BYTES, Condition, to_expression
from .segments import Row
from .stores import MOST_HITS, Hit

FLAT = "FLAT"
# Of a server. Parameters are the server's defaults.
SERVER_INDEX_TYPES = (FLAT, "AUTOINDEX", "HNSW", "IVF_FLAT", "IVF_SQ8", "DISKANN", "SCANN")
BATCH = 1000  # rows of a request
KEY_BYTES = 16
METRIC = "IP"  # of embeddings of unit length the cosine
TOKEN = "MILVUS_TOKEN"  # variable of the environment: "user:password" or a key
# The client's own pings are more than milvus-lite's server bears: it cuts the connection every half minute.
EMBEDDED_OPTIONS = {"grpc.keepalive_time_ms": 2**31 - 1, "grpc.keepalive_permit_without_calls": False}
# Loggers that show a traceback because milvus-lite has no clock; the client then takes its own.
NO_CLOCK = ("grpc._server", "pymilvus")
OPENED: Counter[Path] = Counter()  # stores of this process by the folder of their database
# Of pymilvus' DataType by the types of columns
MILVUS_TYPES = {"bool": "BOOL", "int": "INT64", "float": "DOUBLE", "str": "VARCHAR"}


class MilvusStore:
    """
    A store in Milvus.

    Args:
        address: folder of an embedded database, which is made if it is missing, or the URI of a server, such as
            `http://localhost:19530`
        dimension: P
        columns: types of the metadata
        index_type: of a new collection; by default `FLAT` embedded, and `AUTOINDEX` of a server
        collection: its name

    Raises:
        ImportError: without pymilvus, or for an embedded database without milvus-lite.
        ValueError: if the database cannot be opened, for an index type that is not allowed, and for a collection of
            another dimension.
    """

    def __init__(
        self,
        address: str | Path,
        dimension: int,
        columns: Mapping[str, str],
        index_type: str | None = None,
        collection: str = "rows",
    ):
        self.is_embedded, self.address = isinstance(address, Path), address
        self.dimension, self.columns, self.collection = dimension, columns, collection
        self.index_type = check_index_type(index_type, self.is_embedded)
        self.client = connect(address)
        if not self.client.has_collection(collection):
            self.create()
        self.client.load_collection(collection)
        fields = {each["name"]: each for each in self.client.describe_collection(collection)["fields"]}
        size = fields["vector"]["params"]["dim"]
        if int(size) != dimension:
            self.close()
            raise ValueError(
                f"{address}: the collection {collection!r} holds embeddings of {size} numbers, the index of "
                f"{dimension}. Build the index again in a new folder."
            )

    def create(self) -> None:
        """Make the collection: a column for each of a row's values, and the index."""
        from pymilvus import DataType

        schema = self.client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("key", DataType.VARCHAR, max_length=2 * KEY_BYTES, is_primary=True)
        for name in FIXED:
            schema.add_field(name, DataType.VARCHAR, max_length=MAX_TEXT_BYTES)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=self.dimension)
        for name, kind in self.columns.items():
            length = {"max_length": MAX_TEXT_BYTES} if kind == "str" else {}
            schema.add_field(name, DataType[MILVUS_TYPES[kind]], nullable=True, **length)
        index = self.client.prepare_index_params()
        index.add_index("vector", index_type=self.index_type, metric_type=METRIC)
        options = {"schema": schema, "index_params": index, "consistency_level": "Strong"}
        with no_log(*NO_CLOCK):
            self.client.create_collection(self.collection, **options)

    def __len__(self) -> int:
        return int(self.client.query(self.collection, filter="", output_fields=["count(*)"])[0]["count(*)"])

    # ---- Changes ----------------------------------------------------------------------------------------------------

    def upsert(self, table: pa.Table, vectors: np.ndarray) -> None:
        for start in range(0, len(table), BATCH):
            rows = table.slice(start, BATCH).to_pylist()
            batch = vectors[start : start + BATCH].astype(np.float32)
            for row, vector in zip(rows, batch, strict=True):
                row |= {"key": key_of(row["id"]), "vector": vector}
            self.client.upsert(self.collection, rows)
        self.client.flush(self.collection)

    def delete(self, ids: Sequence[str]) -> int:
        deleted = 0
        for batch in batches(list(dict.fromkeys(ids))):
            # The client counts ids that are not there, too.
            found = self.client.query(self.collection, filter=is_among(batch), output_fields=["id"], limit=BATCH)
            if found:
                self.client.delete(self.collection, ids=[key_of(each["id"]) for each in found])
            deleted += len(found)
        self.client.flush(self.collection)
        return deleted

    def tidy(self) -> None:
        """Leave the space to Milvus, which compacts by itself."""

    # ---- Questions --------------------------------------------------------------------------------------------------

    def search(self, query: np.ndarray, top: int, conditions: Sequence[Condition] = ()) -> list[Hit]:
        found = self.client.search(
            self.collection,
            data=[np.asarray(query, dtype=np.float32)],
            limit=min(top, MOST_HITS),
            filter=to_expression(conditions),
            output_fields=[*FIXED, *self.columns],
            search_params={"metric_type": METRIC},
        )[0]
        return [Hit(float(each["distance"]), self.row_of(each["entity"])) for each in found]

    def get(self, ids: Sequence[str]) -> dict[str, tuple[Row, np.ndarray]]:
        found = {}
        for batch in batches(ids):
            fields = [*FIXED, *self.columns, "vector"]
            for each in self.client.query(self.collection, filter=is_among(batch), output_fields=fields, limit=BATCH):
                found[each["id"]] = (self.row_of(each), np.asarray(each["vector"], dtype=np.float32))
        return found

    def signatures(self) -> dict[str, tuple[str, str]]:
        found: dict[str, tuple[str, str]] = {}
        with no_log(*NO_CLOCK):
            rows = self.client.query_iterator(
                self.collection, batch_size=BATCH, filter="", output_fields=["id", "source", "signature"]
            )
        while batch := rows.next():
            found |= {each["id"]: (each["source"], each["signature"]) for each in batch}
        rows.close()
        return found

    def row_of(self, values: Mapping[str, Any]) -> Row:
        return Row.from_dict({name: values.get(name) for name in (*FIXED, *self.columns)})

    def close(self) -> None:
        """Close the connection; of an embedded database the last one frees its folder for other processes."""
        if self.client is not None:
            self.client.close()
            self.client = None
            if isinstance(self.address, Path):
                release(self.address)


def check_index_type(index_type: str | None, is_embedded: bool) -> str:
    """
    Return the type of index of a collection.

    Raises:
        ValueError: for one that is not known or that loses rows embedded.
    """
    if index_type is None:
        return FLAT if is_embedded else "AUTOINDEX"
    if is_embedded and index_type != FLAT:
        raise ValueError(
            f"--index-type {index_type}: embedded Milvus loses rows with it under conditions and after deletes. Use "
            f"{FLAT}, which is exact, or the address of a server as the store."
        )
    if index_type not in SERVER_INDEX_TYPES:
        raise ValueError(f"--index-type {index_type}: expected one of {', '.join(SERVER_INDEX_TYPES)}.")
    return index_type


def connect(address: str | Path) -> Any:
    """Return a client of an embedded database or of a server; a ValueError if it cannot be reached."""
    from pymilvus import MilvusClient
    from pymilvus.exceptions import MilvusException

    options: dict[str, Any] = {}
    if isinstance(address, Path):
        import milvus_lite  # noqa: F401  # the client would name a problem of the address if it is missing

        address.parent.mkdir(parents=True, exist_ok=True)
        options = {"grpc_options": EMBEDDED_OPTIONS}
    try:
        with no_log("milvus_lite.server_manager", "pymilvus"):  # the error says it
            client = MilvusClient(uri=str(address), token=os.environ.get(TOKEN, ""), **options)
    except MilvusException as error:
        if isinstance(address, Path):
            raise ValueError(
                f"{address} cannot be opened. One process at a time can: close the one that searches it or builds it, "
                "or keep the index in a Milvus server (--store http://...) for several."
            ) from error
        raise ValueError(f"{address}: no Milvus server answers ({error}). Check the address.") from error
    if isinstance(address, Path):
        OPENED[address.resolve()] += 1
    return client


def release(address: Path) -> None:
    """Stop the server of an embedded database, whose lock the client keeps, if no store has it open any longer."""
    from milvus_lite.server_manager import server_manager_instance

    OPENED[address.resolve()] -= 1
    if not OPENED[address.resolve()]:
        server_manager_instance.release_server(str(address))


@contextmanager
def no_log(*names: str) -> Iterator[None]:
    """Write no log of some loggers."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def batches(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), BATCH):
        yield ids[start : start + BATCH]


def key_of(name: str) -> str:
    """Return the primary key of a row's id: the client puts keys into expressions without escaping quotes in them."""
    return hashlib.blake2b(name.encode("utf-8"), digest_size=KEY_BYTES).hexdigest()


def is_among(ids: Sequence[str]) -> str:
    """Return the expression for rows with these ids."""
    return f"key in {json.dumps([key_of(name) for name in ids])}"
