"""The first catalog: packs and contents, records, the commit graph, evidence, refs and operations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "packs",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(1), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_packs"),
        sa.UniqueConstraint("id", name="uq_packs_id"),
    )
    op.create_table(
        "contents",
        sa.Column("content", sa.String(64), nullable=False),
        sa.Column("pack", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("first_entry", sa.BigInteger(), nullable=False),
        sa.Column("entries", sa.BigInteger(), nullable=False),
        sa.Column("stored", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("content", "pack", name="pk_contents"),
        sa.ForeignKeyConstraint(["pack"], ["packs.number"], name="fk_contents_pack"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_contents_pack", "contents", ["pack", "first_entry"])
    op.create_table(
        "records",
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.PrimaryKeyConstraint("position", name="pk_records"),
        sa.UniqueConstraint("id", name="uq_records_id"),
    )
    op.create_index("ix_records_kind", "records", ["kind", "position"])
    op.create_table(
        "compositions",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("identity", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_compositions"),
        sa.ForeignKeyConstraint(["id"], ["records.id"], name="fk_compositions_id"),
    )
    op.create_table(
        "slots",
        sa.Column("composition", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("behavior", sa.String(64), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("composition", "position", name="pk_slots"),
        sa.ForeignKeyConstraint(["composition"], ["compositions.id"], name="fk_slots_composition"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_slots_behavior", "slots", ["behavior"])
    op.create_table(
        "commits",
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("composition", sa.String(64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("time", sa.String(64), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_commits"),
        sa.ForeignKeyConstraint(["id"], ["records.id"], name="fk_commits_id"),
    )
    op.create_index("ix_commits_composition", "commits", ["composition"])
    op.create_table(
        "commit_parents",
        sa.Column("commit", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("parent", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("commit", "position", name="pk_commit_parents"),
        sa.ForeignKeyConstraint(["commit"], ["commits.id"], name="fk_commit_parents_commit"),
        sa.ForeignKeyConstraint(["parent"], ["commits.id"], name="fk_commit_parents_parent"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_commit_parents_parent", "commit_parents", ["parent"])
    op.create_table(
        "evidence",
        sa.Column("subject", sa.String(64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("subject", "position", name="pk_evidence"),
        sa.ForeignKeyConstraint(["position"], ["records.position"], name="fk_evidence_position"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_evidence_position", "evidence", ["position"])
    op.create_table(
        "refs",
        sa.Column("name", sa.String(1024), nullable=False),
        sa.Column("value", sa.String(1024), nullable=False),
        sa.PrimaryKeyConstraint("name", name="pk_refs"),
    )
    op.create_table(
        "operations",
        sa.Column("sequence", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("id", sa.String(64), nullable=False),
        sa.Column("body", sa.Text(), nullable=False),
        sa.Column("undoes", sa.String(64), nullable=True),
        sa.PrimaryKeyConstraint("sequence", name="pk_operations"),
        sa.UniqueConstraint("id", name="uq_operations_id"),
    )


def downgrade() -> None:
    for table in (
        "operations",
        "refs",
        "evidence",
        "commit_parents",
        "commits",
        "slots",
        "compositions",
        "records",
        "contents",
        "packs",
    ):
        op.drop_table(table)
