//! Model files: safetensors, GGUF, tokenizers, chat templates and PEFT adapters, as typed values in and out.
