"""The CT scanner: field of view, blur, noise, artefacts, storage."""
