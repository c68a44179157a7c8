"""Settings of the micro-batches: what is read, how it becomes token ids, how these are packed."""

from typing import Literal

from pydantic import Field, field_validator

from schemas.section import Section


class IngestSettings(Section):
    """Micro-batches from Kafka to shards."""

    runner: Literal["ray", "local"] = "ray"
    """``ray``: tasks on the cluster; ``local``: the same job in the ingesting process, for small machines and tests."""
    writer: Literal["auto", "driver", "tasks"] = "auto"
    """Runner ``ray``: who writes shards and audit trail. ``tasks``: no token passes through the ingesting process; ``auto``: tasks unless
    Headrace has started Ray itself, on one machine. The files are the same."""
    max_batch_records: int = Field(100_000, ge=1)
    """Most offsets that one dataset version takes in."""
    max_batch_bytes: int = Field(256 * 2**20, ge=1)
    """Most bytes that one version takes in, judged by the mean size of each partition's records in the version before."""
    target_commit_s: float = Field(30.0, gt=0)
    """``--follow``: a version takes in no more than can be committed in this time, judged by the pace of those before."""
    slice_records: int = Field(2_500, ge=1)
    """Most offsets of a slice: what is read at a time, and the unit of parallelism inside a partition."""
    slice_bytes: int = Field(32 * 2**20, ge=1)
    """Most bytes of a slice, judged in the same way."""
    read_ahead_bytes: int = Field(256 * 2**20, ge=2**20)
    """Runner ``ray``: reading pauses while about this many bytes of prepared blocks, for each node, wait for the committer."""
    follow_interval_s: float = Field(2.0, gt=0)
    """``--follow``: how often to look for new records when there are none."""
    min_batch_records: int = Field(1, ge=1)
    """``--follow``: wait for this many new records …"""
    max_wait_s: float = Field(10.0, ge=0)
    """``--follow``: … but not longer than this since the first of them was seen."""
    min_commit_interval_s: float = Field(30.0, ge=0)
    """``--follow``: least time from the beginning of a version to that of the next, unless records were left over. Longer: larger shards."""
    stall_timeout_s: float = Field(60.0, gt=0)
    """A read task that makes no progress for this long fails with SourceStalled."""
    max_document_bytes: int = Field(16 * 2**20, ge=1024)
    """Larger record values are dead-lettered unread."""
    validation_fraction: float = Field(0.05, ge=0, lt=1)
    """Share of documents, chosen by hash of the document id, that goes to the validation shards."""
    merge_shards: int = Field(64, ge=0)
    """Number of consecutive shards of a split, each under a quarter of ``packing.shard_rows``, that are merged into one file; 0: never. A merge is a
    version without documents. The shards that it replaces are removed after ``merged_grace_s``."""
    merged_grace_s: float = Field(604_800.0, ge=0)
    """Seconds after a merge at which the shards that it replaced are removed. Longer than a process on another host reads them over NFS: a file
    that is removed there takes the pages that it has mapped with it."""
    gc_grace_s: float = Field(3600.0, ge=0)
    """Age in seconds at which files that no manifest lists are removed."""

    @field_validator("merge_shards")
    @classmethod
    def merges_several(cls, value: int) -> int:
        """Refuse 1: one shard cannot be merged."""
        if value == 1:
            raise ValueError("it is 1, but one shard cannot be merged; set 0 for never, or 2 or more")
        return value


class TokenizerSettings(Section):
    """Byte-level BPE, trained on the stream's own first documents or given."""

    path: str = ""
    """A folder with a Hugging Face ``tokenizer.json`` to use; empty trains one on the first batch."""
    vocab_size: int = Field(8_192, ge=300, le=1_000_000)
    """Vocabulary of a trained tokenizer, special tokens included."""
    min_training_bytes: int = Field(2**20, ge=0)
    """Bytes of text that the first version waits for, because a dataset never changes its tokenizer; 0: begin with the text that is there."""
    max_wait_s: float = Field(0.0, ge=0)
    """``--follow``: begin with less text after this many seconds; 0: wait without limit."""
    max_training_bytes: int = Field(16 * 2**20, ge=1)
    """Bytes of text, from the first documents in offset order, that train the tokenizer. Every language has the same weight, if it has enough."""
    engine: Literal["auto", "huggingface"] = "auto"
    """``auto``: gigatoken if it supports the tokenizer, with the same ids and compared with the tokenizers package; else that package alone."""
    check_fraction: float = Field(0.002, ge=0, le=1)
    """Share of documents, chosen by their content, that both engines encode. After one difference only the tokenizers package is used."""


class PackingSettings(Section):
    """Token rows."""

    sequence_length: int = Field(256, ge=8, le=1_048_576)
    """Tokens in one packed row, S."""
    shard_rows: int = Field(65_536, ge=1)
    """Most rows in one shard file."""
