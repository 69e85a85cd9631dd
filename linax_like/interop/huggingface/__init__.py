from .folder import load as load, save as save
