"""What a CT scanner makes of a body: field of view, blur, noise, artefacts, storage."""
