"""What the public repository says of where its models come from: parts, licences, signatures, exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rblstore.repository import Store

if TYPE_CHECKING:
    from rblstore.checkpoints.checkout_layout import CheckoutForm
    from rblstore.operations.audit import AuditResult
    from rblstore.operations.audit_history import AuditHistory
    from rblstore.operations.export import ExportResult
    from rblstore.operations.forget import ForgetResult
    from rblstore.operations.identify_result import IdentifyResult
    from rblstore.operations.license_effect import LicenseEffect
    from rblstore.operations.progress import Progress
    from rblstore.operations.sign import SignResult
    from rblstore.operations.state import StatementsResult
    from rblstore.operations.terms import TermsResult
    from rblstore.operations.verify_signature import SignatureCheck


class Audits:
    """What :class:`rblstore.Repository` knows of where its models come from, and on whose terms."""

    _store: Store

    if TYPE_CHECKING:

        def author(self, author: str | None = None) -> str: ...

    def state(
        self,
        name: str,
        *,
        revision: str = "HEAD",
        license: str | None = None,
        concluded: str | None = None,
        license_file: str | Path | None = None,
        datasets: Sequence[str] | Mapping[str, str | None] = (),
        source: str | None = None,
        base_revision: str | None = None,
        meta: Mapping[str, str] | None = None,
        retract: Sequence[str] = (),
        author: str | None = None,
        origin: str = "api",
    ) -> StatementsResult:
        """States something about an identity or behavior; a later statement supersedes, and none replaces.

        Args:
            name: ``identity``, a behavior's name in the revision, or the prefix of an id.
            revision: The commit in which the name is looked up.
            license: What it is declared to be under: an SPDX expression or a hub's licence id.
            concluded: What it is under in the judgement of who says this; ``NOASSERTION`` for no judgement.
            license_file: A file with the terms; it is stored, with its name and what it is recognised as.
            datasets: What it was trained on: ``NAME[@REV][=LICENSE]``, or licences (None: not known) by ``NAME[@REV]``.
            source: Where it comes from: ``ORG/NAME[@REV]`` of a hub, a URL, words.
            base_revision: Which commit of its base it was made for.
            meta: Anything else, by key.
            retract: What stands no more, with nothing in its place: ``KEY``, or ``KEY=VALUE``, as statements have them.
            author: Who says so.
            origin: Where it comes from, for the statement.

        Raises:
            NotFoundError: There is nothing of that name.
            UsageError: A licence that is no expression, an empty value, or nothing stands of what is retracted.
        """
        from rblstore.operations.state import state
        from rblstore.operations.told import Told

        told = Told(license, license_file, datasets, source, base_revision, concluded, meta or {}, retract)
        who = self.author(author)
        return state(self._store, name, told, revision=revision, origin=origin, author=who)

    def statements(self, name: str, revision: str = "HEAD") -> StatementsResult:
        """Everything that was said about an identity or behavior and by whom, and what it comes to now."""
        from rblstore.operations.state import state
        from rblstore.operations.told import Told

        return state(self._store, name, Told(), revision=revision, author="")

    def license_texts(self, name: str, revision: str = "HEAD") -> TermsResult:
        """Reads back the texts of licences, notices and policies: those beside the weights, and those that people gave.

        Args:
            name: ``identity``, a behavior's name in the revision, or the prefix of an id.
            revision: The commit in which the name is looked up.

        Raises:
            NotFoundError: There is nothing of that name.
            CorruptError: A text is damaged.
        """
        from rblstore.operations.terms import terms

        return terms(self._store, name, revision)

    def audit(
        self,
        revision: str = "HEAD",
        *,
        use: Sequence[str] = ("use", "host", "distribute"),
        rules: Sequence[str | Path] = (),
        data_reaches_weights: bool = True,
        merged: bool = False,
        at: str | None = None,
    ) -> AuditResult:
        """What is in a commit, on whose terms, what these ask, what is not known, and who vouches for it.

        It reports findings, each with its rule and where that is written. It is no legal advice.

        Args:
            revision: Which commit.
            use: What it is meant for: ``use`` (run by yourself), ``host`` (offered over a network), ``distribute``.
            rules: Files of rules of your own; they add to those that come with rblstore, or replace some by id.
            data_reaches_weights: Whether terms of data count as terms of what was trained on it; else a note says so.
            merged: Whether the parts are to be summed into one checkpoint.
            at: A date or time: the commit that the ref stood for then, by what was said and proved until then; the
                result's ``since`` counts what came later.

        Raises:
            BadRulesError: A file of rules breaks the schema.
            NotFoundError: No such revision, or not then.
        """
        from rblstore.operations.audit import audit
        from rblstore.operations.audit_rules import audit_request

        request = audit_request(use, rules, data_reaches_weights=data_reaches_weights, merged=merged)
        return audit(self._store, revision, request, at=at)

    def audit_path(
        self,
        path: str | Path,
        *,
        use: Sequence[str] = ("use", "host", "distribute"),
        rules: Sequence[str | Path] = (),
        data_reaches_weights: bool = True,
        merged: bool = False,
        progress: Progress | None = None,
    ) -> AuditResult:
        """Audits a checkout as the commit that it is, with what was changed in it; other files by their digests.

        Args:
            path: A directory or file.
            use: As for :meth:`audit`.
            rules: As for :meth:`audit`.
            data_reaches_weights: As for :meth:`audit`.
            merged: As for :meth:`audit`; a merged checkout always is.
            progress: Is told bytes hashed.

        Raises:
            InputError: It cannot be read.
            BadRulesError: A file of rules breaks the schema.
        """
        from rblstore.objects.paths import given_path
        from rblstore.operations.audit_directory import audit_path
        from rblstore.operations.audit_rules import audit_request

        request = audit_request(use, rules, data_reaches_weights=data_reaches_weights, merged=merged)
        return audit_path(self._store, given_path(path), request, progress)

    def identify(self, path: str | Path, *, progress: Progress | None = None) -> IdentifyResult:
        """Says what a loose file, or each folder of a directory, is by digest, and else what it resembles.

        Everything streams: no model is loaded, and memory does not grow with the files.

        Args:
            path: A directory or file: safetensors, sharded or not, adapters, checkouts; any other file by its digest.
            progress: Is told bytes hashed.

        Raises:
            InputError: It cannot be read, changes meanwhile, or has a safetensors file that breaks its format.
            CorruptError: A record or stored bytes are missing or damaged.
        """
        from rblstore.objects.paths import given_path
        from rblstore.operations.identify import identify

        return identify(self._store, given_path(path), progress)

    def audit_history(self, ref: str = "HEAD") -> AuditHistory:
        """When each identity and behavior entered a branch or tag, when it left, and who did it.

        Args:
            ref: A branch or tag; HEAD is the branch that it stands for.
        """
        from rblstore.operations.audit_history import history

        return history(self._store, ref)

    def license_effect(
        self,
        before: str | None = "HEAD^",
        after: str = "HEAD",
        *,
        use: Sequence[str] = ("use", "host", "distribute"),
        rules: Sequence[str | Path] = (),
        data_reaches_weights: bool = True,
        merged: bool = False,
    ) -> LicenseEffect:
        """Which findings about terms the second commit has and the first has not, and the other way round.

        Args:
            before: A revision; None for nothing.
            after: A revision.
            use: As for :meth:`audit`.
            rules: As for :meth:`audit`.
            data_reaches_weights: As for :meth:`audit`.
            merged: Whether the second is summed into one checkpoint.
        """
        from rblstore.operations.audit_rules import audit_request
        from rblstore.operations.license_effect import license_effect

        request = audit_request(use, rules, data_reaches_weights=data_reaches_weights, merged=False)
        return license_effect(self._store, before, after, request, merged=merged)

    def sign(
        self,
        revision: str = "HEAD",
        *,
        form: CheckoutForm = "adapters",
        key: bytes | str | Path | None = None,
        password: bytes | None = None,
        certificates: bytes | str | Path | None = None,
        keyless: bool = False,
        identity_token: str | None = None,
        verification: str | None = None,
        output: str | Path | None = None,
        force: bool = False,
        author: str | None = None,
    ) -> SignResult:
        """Signs a commit's files, or a verification, and records the signature; see docs/signing.md.

        The digests that are signed are those that are stored: nothing large is read. The public ``model_signing verify
        key`` verifies the file that ``output`` names over a checkout of the commit, anywhere.

        Args:
            revision: The commit.
            form: Whose files: of a checkout in the form ``adapters``, or ``merged``, whose weights are read for it.
            key: A private key: PEM as bytes, or the file that holds it. It is neither stored nor written anywhere.
            password: Of an encrypted key.
            certificates: PEM, or their file: the key's certificate, then those that vouch for it.
            keyless: Whether sigstore gives a certificate, over the network, in place of a key.
            identity_token: An OpenID Connect token for ``keyless``; None for that of a continuous integration job.
            verification: Sign this verification (id or unique prefix), as an in-toto statement, in place of files.
            output: Write the signature there, too: a file, or a directory that gets ``model.sig``.
            force: Whether a file there gives way.
            author: Who is recorded.

        Raises:
            BadKeyError: The key or certificate cannot be used.
            PasswordError: The key is encrypted, and the password is missing or wrong.
            KeylessUnavailableError: The network or sigstore refuses.
            ConflictError: ``output`` exists, or lies in a checkout of another commit or form.
        """
        from rblstore.objects.paths import given_path
        from rblstore.operations.key_files import given_pem
        from rblstore.operations.sign import SignRequest, sign

        request = SignRequest(
            author=self.author(author),
            revision=revision,
            form=form,
            key=given_pem(key, "private key"),
            password=password,
            certificates=given_pem(certificates, "certificates"),
            keyless=keyless,
            identity_token=identity_token,
            verification=verification,
            output=None if output is None else given_path(output),
            force=force,
        )
        return sign(self._store, request)

    def verify_signature(
        self,
        revision: str = "HEAD",
        *,
        key: bytes | str | Path | None = None,
        roots: bytes | str | Path | None = None,
        identity: str | None = None,
        issuer: str | None = None,
        verification: str | None = None,
        signature: str | Path | None = None,
        directory: str | Path | None = None,
    ) -> SignatureCheck:
        """Who vouches for a commit, a verification or a directory, and whether that holds. Look at its ``status``.

        ``signed`` is said where a signature by whom you trust holds; ``bad`` where there are signatures and none does;
        ``not_verified`` where there are some, and you said of nobody that you trust them; else ``unsigned``.

        Args:
            revision: The commit.
            key: A public key that you trust: PEM as bytes, or its file.
            roots: Certificates whose word you trust: PEM as bytes, or their file.
            identity: Whose sigstore signature you trust; with ``issuer``. Needs a network.
            issuer: The provider that must have said so.
            verification: Look at the signatures over this verification (id or unique prefix).
            signature: Look at this file, and not at what is recorded.
            directory: Look at the files of this directory, and at ``model.sig`` in it.

        Raises:
            BadKeyError: What is to be trusted is no public key or certificate.
            NotFoundError: There is no such commit, verification or file.
        """
        from rblstore.objects.paths import given_path
        from rblstore.operations.key_files import given_pem
        from rblstore.operations.verify_signature import Trust, named_alone, verify_directory, verify_signature

        trust = Trust(given_pem(key, "public key"), given_pem(roots, "certificates"), identity, issuer)
        file = None if signature is None else given_path(signature)
        if directory is not None:
            if verification is not None:
                raise named_alone(verification)
            return verify_directory(given_path(directory), trust=trust, signature=file, store=self._store)
        return verify_signature(self._store, revision, trust=trust, verification=verification, signature=file)

    def export(
        self,
        revision: str = "HEAD",
        format: str = "cyclonedx",
        *,
        verification: str | None = None,
        behavior: str | None = None,
    ) -> ExportResult:
        """Writes what is known of a commit as a document that others' tools read. No model is run, no tensor read.

        The same records give the same bytes, ``result.data``.

        Args:
            revision: Which commit.
            format: ``cyclonedx`` (1.7), ``spdx3`` (3.0.1), ``in-toto``, ``model-card`` or ``annex-xi``.
            verification: For ``in-toto``: which verification is attested, by id or unique prefix; None for the latest.
            behavior: For ``in-toto``: a behavior, whose training is attested in place of a verification.

        Raises:
            UsageError: Another format, or a choice that the format does not have.
            NotFoundError: No such revision, or nothing that an in-toto statement could be made of.
            MissingLibraryError: The libraries of ``rblstore[provenance]`` are not installed.
            CorruptError: A record, or a small file beside the weights, is missing or damaged.
        """
        from rblstore import __version__
        from rblstore.operations.export import export

        return export(self._store, revision, format, verification=verification, behavior=behavior, version=__version__)

    def forget(
        self, name: str, *, reason: str, revision: str = "HEAD", apply: bool = False, author: str | None = None
    ) -> ForgetResult:
        """Says what goes with an identity or behavior; with ``apply``, has it go for good, by the next gc.

        Its record, its statements and the commits that have it stay, and say by whom, when and why it was removed.
        Composing one of them is refused from then on. This cannot be undone.

        Args:
            name: ``identity``, a behavior's name in the revision, or the prefix of an id.
            reason: Why, for whoever looks for it later.
            revision: The commit in which the name is looked up.
            apply: Whether to do it, and not only to say what would go.
            author: Who removes it.

        Raises:
            NotFoundError: There is nothing of that name.
            NothingChangedError: It was removed before.
        """
        from rblstore.operations.forget import forget

        who = self.author(author)
        return forget(self._store, name, reason=reason, author=who, revision=revision, apply=apply)
