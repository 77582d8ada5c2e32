// A library module. Copy this folder to vitedge/ in the project, add include(":vitedge") to settings.gradle.kts, and to the
// app dependencies { implementation(project(":vitedge")) } beside androidResources { noCompress += "tflite" }.
plugins {
    id("com.android.library") // with a version before 9 add id("org.jetbrains.kotlin.android")
}

android {
    namespace = "vitedge.encoder"
    compileSdk = 36
    defaultConfig {
        minSdk = 24 // as the runtime asks
        testInstrumentationRunner = "androidx.test.runner.AndroidJUnitRunner"
    }
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    sourceSets {
        getByName("main") { assets.srcDir("model") }
        getByName("androidTest") { assets.srcDir("golden") }
    }
    androidResources { noCompress += "tflite" } // so that the model can be mapped into memory
}

dependencies {
    implementation("com.google.ai.edge.litert:litert:2.3.0")
    testImplementation("junit:junit:4.13.2")
    androidTestImplementation("junit:junit:4.13.2")
    androidTestImplementation("androidx.test:runner:1.6.2")
}
