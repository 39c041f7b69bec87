"""Bearer tokens: who may do what with the service. Secrets are stored as hashes only."""

from __future__ import annotations

import enum
import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa

from focus_lab.errors import UserError
from focus_lab.lab.database import Database, rows, utc
from focus_lab.lab.queue.events import write_event
from focus_lab.lab.tables import TokenRow

_USED_EVERY = timedelta(minutes=1)
"""How exactly the last use is kept: not every request is worth a write."""


class Scope(enum.StrEnum):
    """What a token allows; each one includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def includes(self, other: Scope) -> bool:
        """Whether this one allows what `other` does."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


class TokenError(UserError):
    """There is no such token."""


@dataclass(frozen=True)
class Token:
    """A token without its secret."""

    id: str
    user: str
    project: str
    scope: Scope
    note: str
    created_at: datetime
    expires_at: datetime | None
    used_at: datetime | None
    revoked_at: datetime | None


class Tokens:
    """The tokens of a store."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self,
        user: str,
        scope: Scope,
        *,
        project: str = "default",
        days: float | None = 90,
        note: str = "",
        actor: str = "command line",
    ) -> str:
        """Make a token; this is the only time that its secret is seen.

        Args:
            user: who acts with it.
            scope: what it allows.
            project: that its submissions belong to.
            days: until it expires; None never.
            note: what it is for.
            actor: who makes it.

        Raises:
            UserError: a name is not usable.
        """
        for what, name in (("user", user), ("project", project)):
            if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.@-]{0,62}", name):
                raise UserError(
                    f"--{what}: must be 1 to 63 of letters, digits and _.@-, got {name!r}"
                )
        token_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
        with self._database.session() as session:
            now = self._database.now(session)
            session.add(
                TokenRow(
                    id=token_id, digest=_digest(secret), user=user, project=project,
                    scope=scope.value, note=note[:200], created_at=now,
                    expires_at=None if days is None else now + timedelta(days=days),
                )
            )  # fmt: skip
            write_event(
                session, self._database, None, "token", actor,
                {"created": token_id, "user": user, "scope": scope.value},
            )  # fmt: skip
        return f"fl_{token_id}_{secret}"

    def verify(self, text: str) -> Token | None:
        """The token that a request shows; None when it is not valid (any more)."""
        match = re.fullmatch(r"fl_([0-9a-f]{12})_([A-Za-z0-9_-]{43})", text)
        with self._database.reading() as session:
            row = session.get(TokenRow, match[1]) if match else None
            wanted, token = (row.digest, _token(row)) if row else (_digest(""), None)
            now = self._database.now(session)
        # Compared in any case, and in constant time: an answer's delay must not tell what exists.
        fits = hmac.compare_digest(wanted, _digest(match[2] if match else " "))
        if token is None or not fits:
            return None
        if token.revoked_at is not None or (token.expires_at and token.expires_at <= now):
            return None
        if token.used_at is None or now - token.used_at > _USED_EVERY:
            with self._database.session() as session:
                session.execute(
                    sa.update(TokenRow).where(TokenRow.id == token.id).values(used_at=now)
                )
        return token

    def list(self) -> list[Token]:
        """All tokens, newest first."""
        with self._database.reading() as session:
            found = session.scalars(sa.select(TokenRow).order_by(TokenRow.created_at.desc()))
            return [_token(row) for row in found]

    def revoke(self, token_id: str, actor: str = "command line") -> None:
        """End a token; a service that has just seen it refuses it a second later.

        Raises:
            TokenError: there is none with this id that could be ended.
        """
        with self._database.session() as session:
            changed = session.execute(
                sa.update(TokenRow)
                .where(TokenRow.id == token_id, TokenRow.revoked_at.is_(None))
                .values(revoked_at=self._database.now(session))
            )
            if not rows(changed):
                raise TokenError(
                    f"token: none that is valid has this id, got {token_id[:40]!r}; see "
                    "`focus-lab token list`"
                )
            write_event(session, self._database, None, "token", actor, {"revoked": token_id})


def _digest(secret: str) -> str:
    # 256 random bits need no slow hash.
    return hashlib.sha256(secret.encode()).hexdigest()


def _token(row: TokenRow) -> Token:
    created = utc(row.created_at)
    assert created is not None
    return Token(
        row.id, row.user, row.project, Scope(row.scope), row.note, created, utc(row.expires_at),
        utc(row.used_at), utc(row.revoked_at),
    )  # fmt: skip
