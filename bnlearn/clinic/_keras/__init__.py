"""The clinic for Keras's models. Importing a module of this package imports Keras."""
