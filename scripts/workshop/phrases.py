# Copyright 2026 The modeling_mm authors. Licensed under the Apache License, Version 2.0.
"""Wordings of the chat corpus: questions and fixed answers of each task, in five languages."""

# Several wordings of each question, so that the model does not memorize one.
CAPTION = {
    "en": ("What is this?", "Caption this picture in English.", "What does the picture show?"),
    "fr": ("Qu'est-ce que c'est ?", "Décris cette image en français.", "Que montre l'image ?"),
    "es": ("¿Qué es esto?", "Describe esta imagen en español.", "¿Qué muestra la imagen?"),
    "ru": ("Что это?", "Опиши эту картинку по-русски.", "Что на картинке?"),
    "zh": ("这是什么？", "用中文描述这张图片。", "图片里是什么？"),
}
CATEGORY = {
    "en": ("What kind of thing is this?", "Which category does the picture belong to?"),
    "fr": ("De quel genre de chose s'agit-il ?", "À quelle catégorie appartient l'image ?"),
    "es": ("¿Qué tipo de cosa es esta?", "¿A qué categoría pertenece la imagen?"),
    "ru": ("Что это за вещь?", "К какой категории относится картинка?"),
    "zh": ("这是哪一类东西？", "这张图片属于哪一类？"),
}
KINDS = {
    "faces": {"en": "faces", "fr": "visages", "es": "caras", "ru": "лица", "zh": "表情"},
    "people": {"en": "people", "fr": "personnes", "es": "personas", "ru": "люди", "zh": "人物"},
    "nature": {"en": "animals and plants", "fr": "animaux et plantes", "es": "animales y plantas",
               "ru": "животные и растения", "zh": "动植物"},
    "food": {"en": "food", "fr": "nourriture", "es": "comida", "ru": "еда", "zh": "食物"},
    "places": {"en": "places and vehicles", "fr": "lieux et véhicules", "es": "lugares y vehículos",
               "ru": "места и транспорт", "zh": "地点和交通"},
    "activities": {"en": "activities", "fr": "activités", "es": "actividades", "ru": "занятия", "zh": "活动"},
    "objects": {"en": "objects", "fr": "objets", "es": "objetos", "ru": "предметы", "zh": "物品"},
    "symbols": {"en": "symbols", "fr": "symboles", "es": "símbolos", "ru": "символы", "zh": "符号"},
    "flags": {"en": "flags", "fr": "drapeaux", "es": "banderas", "ru": "флаги", "zh": "旗帜"},
}  # fmt: skip
# Catalan, Romanian and Bulgarian occur in recordings only; the question is in English.
TRANSCRIBE = {
    "en": ("What is said?", "Transcribe the speech."),
    "fr": ("Que dit la voix ?", "Transcris la parole."),
    "es": ("¿Qué dice la voz?", "Transcribe el habla."),
    "ru": ("Что сказано?", "Запиши речь."),
    "zh": ("说了什么？", "写出听到的话。"),
    "ca": ("Write down what is said in Catalan.",),
    "ro": ("Write down what is said in Romanian.",),
    "bg": ("Write down what is said in Bulgarian.",),
}
NAME_AUDIO = {
    "en": ("What makes this sound?",),
    "fr": ("Qu'est-ce qui fait ce bruit ?",),
    "es": ("¿Qué hace este sonido?",),
    "ru": ("Что издаёт этот звук?",),
    "zh": ("这是什么发出的声音？",),
}
LANGUAGE_NAMES = {"en": "English", "fr": "French", "es": "Spanish", "ru": "Russian", "zh": "Chinese"}
TRANSLATE = "Translate this caption into {language}: {text}"
VERIFY_NAME = {
    "en": "Is this called “{name}”?",
    "fr": "Est-ce que cela s'appelle « {name} » ?",
    "es": "¿Se llama esto «{name}»?",
    "ru": "Это называется «{name}»?",
    "zh": "这叫“{name}”吗？",
}
MATCH_AUDIO_IMAGE = {
    "en": "Does the voice name the picture?",
    "fr": "La voix nomme-t-elle l'image ?",
    "es": "¿La voz nombra la imagen?",
    "ru": "Голос называет картинку?",
    "zh": "声音说的是图片吗？",
}
VERIFY_AUDIO = "Does the sound belong to the picture?"
CHOOSE_IMAGE = {
    "en": "Which of the two pictures is “{name}”?",
    "fr": "Laquelle des deux images est « {name} » ?",
    "es": "¿Cuál de las dos imágenes es «{name}»?",
    "ru": "На какой из двух картинок «{name}»?",
    "zh": "两张图片中哪一张是“{name}”？",
}
YES_NO = {
    "en": ("yes", "no"),
    "fr": ("oui", "non"),
    "es": ("sí", "no"),
    "ru": ("да", "нет"),
    "zh": ("是", "不是"),
}
FIRST_SECOND = {
    "en": ("the first", "the second"),
    "fr": ("la première", "la deuxième"),
    "es": ("la primera", "la segunda"),
    "ru": ("на первой", "на второй"),
    "zh": ("第一张", "第二张"),
}
