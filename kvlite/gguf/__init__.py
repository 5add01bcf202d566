"""GGUF files, as llama.cpp, ollama and LM Studio keep models: read whole models from them. Loads no torch at import."""
