"""The passes of the compiler, one file a pass, in the order in which data flows."""

if __name__ != "ecospa_fx.passes":
    # As `passes`, from the repository root, every module would exist twice, each with its own registries.
    raise ImportError(
        f"this package is `ecospa_fx.passes`, and it was imported as `{__name__}`: import it by its name"
    )
