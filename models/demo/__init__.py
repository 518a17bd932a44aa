"""The small Qwen2-VL checkpoint that ships with the project, and the recipe that trains it."""
