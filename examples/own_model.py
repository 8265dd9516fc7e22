"""A Keras model of one's own for cadences: python -m setibl_ray.cv --model examples.own_model:shallow"""

import tensorflow as tf

from setibl_ray import Config


def shallow(image_shape: tuple[int, int, int], config: Config, fold_config) -> tf.keras.Model:
    """Three strided convolutions over (height, width, channels) -> needle probability."""
    image = tf.keras.Input(image_shape)
    x = image
    for filters in (16, 32, 64):
        x = tf.keras.layers.Conv2D(filters, 5, strides=2, padding="same", activation="relu")(x)
    x = tf.keras.layers.GlobalMaxPooling2D()(x)
    return tf.keras.Model(image, tf.keras.layers.Dense(1, activation="sigmoid")(x))
