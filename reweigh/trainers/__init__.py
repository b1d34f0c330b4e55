"""An estimator in whichever trainer you run: one thin file a framework, each imported only where it is used."""
